"""Other readings of a text that has more than one: tried when the first ones differ, one text at a time."""

import re
from collections.abc import Iterator

from actors.answers.forms import Quantity, Reading, Region, Several, Words
from actors.answers.nodes import Node, num, replace, symbols, walk
from actors.answers.normalise import normal_form
from actors.answers.numerals import is_grouped
from actors.answers.read import decimal_comma, euler_product, read_normalised, unit_of_letters


def other_readings(
    reference: str, answer: str, read_reference: Reading, read_answer: Reading
) -> Iterator[tuple[Reading, Reading, str]]:
    """Pairs of readings to compare in place of the first ones, and what each assumes."""
    one, other = normal_form(reference), normal_form(answer)
    if _is_fraction_point(read_reference) and (comma := decimal_comma(other)):
        yield read_reference, comma, "with a decimal comma"
    if _is_fraction_point(read_answer) and (comma := decimal_comma(one)):
        yield comma, read_answer, "with a decimal comma"
    if _has_unit(read_reference) and (measured := unit_of_letters(other)):
        yield read_reference, measured, "with letters as a unit"
    if _has_unit(read_answer) and (measured := unit_of_letters(one)):
        yield measured, read_answer, "with letters as a unit"
    if product := euler_product(other):
        yield read_reference, product, "with e as Euler's number"
    if product := euler_product(one):
        yield product, read_answer, "with e as Euler's number"
    if is_grouped(reference):
        yield read_normalised(re.sub(r",", ", ", reference)), read_answer, "as a list"
    if "j" in other and "i" not in other and "i" in one and (turned := _with_i(read_answer)):
        yield read_reference, turned, "with j as the imaginary unit"
    stripped = _without_conditions(read_reference), _without_conditions(read_answer)
    if (stripped[0] is read_reference) != (stripped[1] is read_answer):
        yield *stripped, "without the condition on a variable"
    decimal_logs = _with_decimal_logs(read_reference), _with_decimal_logs(read_answer)
    if decimal_logs != (read_reference, read_answer) and _names_base_ten(one + other):
        yield *decimal_logs, "with logarithms to base 10"


def _with_i(reading: Reading) -> Reading | None:
    if not isinstance(reading, Quantity) or reading.unit or reading.name:
        return None
    return Quantity(replace(reading.node, {"j": Node("const", ("i",))}))


def _without_conditions(reading: Reading) -> Reading:
    r"""A value without `k \in \mathbb{Z}` or `n \ge 1` behind it."""
    if not isinstance(reading, Several) or reading.kind != "list":
        return reading
    names = {name for item in reading.items if isinstance(item, Quantity) for name in symbols(item.node)}
    kept = [
        item
        for item in reading.items
        if not (isinstance(item, Words) and " in " in item.text)
        and not (isinstance(item, Region) and item.name in names)
    ]
    if len(kept) == len(reading.items) or not kept:
        return reading
    return kept[0] if len(kept) == 1 else Several("list", tuple(kept))


def _is_fraction_point(reading: Reading) -> bool:
    return isinstance(reading, Quantity) and bool(reading.places)


def _has_unit(reading: Reading) -> bool:
    return isinstance(reading, Quantity) and reading.unit is not None and bool(reading.unit.kind)


def _names_base_ten(text: str) -> bool:
    return re.search(r"\\lg\b|\\log ?_ ?\{? ?10", text) is not None


def _with_decimal_logs(reading: Reading) -> Reading:
    if not isinstance(reading, Quantity) or not any(part.args[0] == "log" for part in walk(reading.node)):
        return reading
    return Quantity(_decimal(reading.node), reading.unit, reading.counted, reading.name)


def _decimal(node: Node) -> Node:
    args = tuple(_decimal(arg) if isinstance(arg, Node) else arg for arg in node.args)
    return Node("log", (num(10), args[1])) if node.op == "fn" and args[0] == "log" else Node(node.op, args)
