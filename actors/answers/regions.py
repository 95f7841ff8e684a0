"""Sets of real numbers as pieces of the line: union, intersection, difference. The ends stay exact nodes."""

from collections.abc import Iterable
from fractions import Fraction
from functools import cmp_to_key
from typing import Any

from actors.answers.forms import Part, Quantity, Reading, Region, Several
from actors.answers.nodes import Node
from actors.answers.values import equal_values, real_value

INFINITY = Node("const", ("oo",))
MINUS_INFINITY = Node("neg", (INFINITY,))
LINE = Part(MINUS_INFINITY, False, INFINITY, False)


def order(first: Node, second: Node) -> int | None:
    """-1, 0 or 1 as the first is less than, equal to or more than the second; None where one is not real."""
    if first == second:
        return 0
    one, other = real_value(first), real_value(second)
    if one is None or other is None:
        return None
    if equal_values(first, second):
        return 0
    return -1 if _real(one) < _real(other) else 1


def point(node: Node) -> Part:
    """The piece that is one number."""
    return Part(node, True, node, True)


def union(parts: Iterable[Part]) -> tuple[Part, ...] | None:
    """The pieces in order, those that touch joined; None where the ends cannot be ordered."""
    pieces = [part for part in parts if not is_empty(part)]
    if any(order(part.low, part.high) is None for part in pieces):
        return tuple(pieces) if len(pieces) < 2 else None
    joined: list[Part] = []
    for part in sorted(pieces, key=cmp_to_key(_before)):
        last = joined[-1] if joined else None
        if last is not None and _touch(last, part):
            joined[-1] = _joined(last, part)
        else:
            joined.append(part)
    return tuple(joined)


def complement(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """What is left of the real line; the pieces are in order."""
    rest: list[Part] = []
    low, low_in = MINUS_INFINITY, False
    for part in parts:
        rest.append(Part(low, low_in, part.low, not part.low_in))
        low, low_in = part.high, not part.high_in
    rest.append(Part(low, low_in, INFINITY, False))
    return tuple(part for part in rest if not is_empty(part))


def intersection(first: tuple[Part, ...], second: tuple[Part, ...]) -> tuple[Part, ...] | None:
    """What two sets share; None where the ends cannot be ordered."""
    outside = union([*complement(first), *complement(second)])
    return None if outside is None else complement(outside)


def is_empty(part: Part) -> bool:
    """Whether no number belongs to the piece."""
    ends = order(part.low, part.high)
    if ends is None:
        return False
    infinite = part.low == part.high and part.low in (INFINITY, MINUS_INFINITY)
    return ends > 0 or infinite or (ends == 0 and not (part.low_in and part.high_in))


def as_region(reading: Reading) -> Region | None:
    """The reading as a set of real numbers: `(a, b)` with a < b is the open interval too."""
    if isinstance(reading, Region):
        return reading
    if not isinstance(reading, Several):
        return None
    nodes = [item.node for item in reading.items if isinstance(item, Quantity) and item.unit is None]
    if len(nodes) != len(reading.items):
        return None
    if reading.kind == "tuple":
        if len(nodes) == 2 and (order(*nodes) or -1) < 0:
            return Region((Part(nodes[0], False, nodes[1], False),))
        return None
    if reading.kind != "set" or any(real_value(node) is None for node in nodes):
        return None
    parts = union(point(node) for node in nodes)
    return None if parts is None else Region(parts)


def points_of(region: Region) -> tuple[Node, ...] | None:
    """The numbers of a set that consists of single points."""
    if region.parts and all(
        part.low_in and part.high_in and order(part.low, part.high) == 0 for part in region.parts
    ):
        return tuple(part.low for part in region.parts)
    return None


def _before(first: Part, second: Part) -> int:
    ends = order(first.low, second.low)
    return ends or (second.low_in - first.low_in)


def _touch(first: Part, second: Part) -> bool:
    ends = order(second.low, first.high)
    return ends is not None and (ends < 0 or (ends == 0 and (first.high_in or second.low_in)))


def _joined(first: Part, second: Part) -> Part:
    ends = order(first.high, second.high) or 0
    high, high_in = (first.high, first.high_in) if ends > 0 else (second.high, second.high_in)
    if ends == 0:
        high_in = first.high_in or second.high_in
    return Part(first.low, first.low_in, high, high_in)


def _real(value: Any) -> Any:
    import mpmath

    with mpmath.workdps(50):
        return (
            mpmath.mpf(value.numerator) / value.denominator
            if isinstance(value, Fraction)
            else mpmath.mpf(value)
        )
