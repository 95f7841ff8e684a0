"""When two values with their units are equal: exactly, or as a reference and an answer to it."""

from fractions import Fraction

from actors.answers.forms import Quantity
from actors.answers.nodes import Node, exact, num, symbols
from actors.answers.units import Unit
from actors.answers.values import equal_values, real_value

_ANGLE, _RADIAN = (("angle", 1),), (("radian", 1),)
_LEAST_PLACES = 2


def match_quantities(reference: Quantity, answer: Quantity, lenient: bool) -> tuple[bool, str]:
    """Whether two values are equal, and by which rule."""
    if not _names_agree(reference, answer, lenient):
        return False, f"the unknown {reference.name} is not {answer.name}"
    if _in_basic_unit_equal(reference, answer):
        plain = reference.unit is None and answer.unit is None
        return _counted_alike(
            reference, answer, lenient, "the same value" if plain else "the same value in one unit"
        )
    if not lenient:
        return False, "different values"
    if (reference.unit is None) != (answer.unit is None):
        unitless = answer if answer.unit is None else reference
        if unitless.counted:
            return False, f"{unitless.counted} is no unit"
        if equal_values(reference.node, answer.node):
            return True, "the same value, the unit left out by one"
    if _kind(reference.unit) != _kind(answer.unit):
        if reference.unit and answer.unit:
            return False, f"the unit {reference.unit.name} is not {answer.unit.name}"
        return False, "different values"
    if _rounds_to(reference, answer):
        return True, f"the same value to the {reference.places} places of the reference"
    return False, "different values"


def _names_agree(reference: Quantity, answer: Quantity, lenient: bool) -> bool:
    if lenient:
        return reference.name is None or answer.name is None or reference.name == answer.name
    if symbols(reference.node) or symbols(answer.node):
        return reference.name == answer.name
    return True


def _kind(unit: Unit | None) -> tuple[tuple[str, int], ...]:
    """Degrees and radians are both numbers, so is a percentage."""
    return () if unit is None or unit.kind in (_ANGLE, _RADIAN) else unit.kind


def _in_basic_unit_equal(first: Quantity, second: Quantity) -> bool:
    if _kind(first.unit) != _kind(second.unit):
        return False
    if first.unit == second.unit:
        return equal_values(first.node, second.node)
    return equal_values(_in_basic_unit(first), _in_basic_unit(second))


def _in_basic_unit(quantity: Quantity) -> Node:
    unit = quantity.unit
    if unit is None or unit.kind == _RADIAN:
        return quantity.node
    scale = (
        Node("mul", (num(unit.size / 180), Node("const", ("pi",)))) if unit.kind == _ANGLE else num(unit.size)
    )
    return Node("mul", (quantity.node, scale))


def _counted_alike(reference: Quantity, answer: Quantity, lenient: bool, rule: str) -> tuple[bool, str]:
    """In a verdict, what is counted must agree where both say it; in a vote it does not matter."""
    if lenient and reference.counted and answer.counted and reference.counted != answer.counted:
        return False, f"{reference.counted} are not {answer.counted}"
    return True, rule


def _rounds_to(reference: Quantity, answer: Quantity) -> bool:
    """Whether an answer that is more precise rounds to a decimal reference.

    The reference needs two places and two digits other than leading zeros. A decimal answer needs at least
    two places more: 0.333 for 0.33 is another decimal, 0.3333 the more precise one.
    """
    value, places = exact(reference.node), reference.places
    if value is None or places is None or places < _LEAST_PLACES or abs(value) * 10**places < 10:
        return False
    if reference.unit != answer.unit or symbols(answer.node):
        return False
    other = exact(answer.node)
    if other is not None and (other * 10 ** (places + 1)).denominator == 1:
        return False
    found = other if other is not None else real_value(answer.node)
    if found is None:
        return False
    try:
        return bool(abs(found * 10**places - int(value * 10**places)) <= Fraction(1, 2) if other is not None
                    else abs(found * 10**places - int(value * 10**places)) <= 0.5)  # fmt: skip
    except (OverflowError, ValueError):
        return False
