"""An expression that has been read, and its value: exactly, as a fraction, or to any number of digits.

A `Node` is an operation and its arguments. Sizes are bounded before anything is computed: a text of a few
characters can ask for a number of a billion digits.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import comb, factorial, gcd, isqrt, lcm, prod
from typing import Any, NamedTuple

MOST_BITS = 1 << 17
"""Bits of an integer that is computed exactly (2^17 bits are 39,000 digits)."""
LARGEST_FACTORIAL = 3_000
"""Larger factorials are computed to some digits only."""
MOST_TERMS = 200
"""Terms of a sum that is added up."""


class TooLarge(Exception):
    """The value is a number too large to compute."""


class NoValue(Exception):
    """The expression has no value there: a division by zero, a logarithm of zero, a matrix."""


class Node(NamedTuple):
    """An operation and its arguments, most of which are nodes too."""

    op: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return as_text(self)


def num(value: int | Fraction) -> Node:
    """A rational number."""
    return Node("num", (Fraction(value),))


def sym(name: str) -> Node:
    """A variable."""
    return Node("sym", (name,))


def walk(node: Node) -> Iterator[Node]:
    """The node and all nodes below it."""
    yield node
    for arg in node.args:
        if isinstance(arg, Node):
            yield from walk(arg)


def symbols(node: Node) -> frozenset[str]:
    """The names of the variables; a sum's own variable is not one of them."""
    if node.op == "sym":
        return frozenset(node.args)
    inside = frozenset(name for arg in node.args if isinstance(arg, Node) for name in symbols(arg))
    return inside - {node.args[0]} if node.op in ("sum", "prod") else inside


def replace(node: Node, names: Mapping[str, Node]) -> Node:
    """The expression with other expressions for some variables."""
    if node.op == "sym":
        return names.get(node.args[0], node)
    if not any(isinstance(arg, Node) for arg in node.args):
        return node
    return Node(node.op, tuple(replace(arg, names) if isinstance(arg, Node) else arg for arg in node.args))


def as_variable(node: Node, constant: str) -> Node:
    """The expression with a variable for a constant of the same name."""
    if node == Node("const", (constant,)):
        return sym(constant)
    args = (as_variable(arg, constant) if isinstance(arg, Node) else arg for arg in node.args)
    return Node(node.op, tuple(args))


def exact(node: Node) -> Fraction | None:
    """The value of an expression of rational numbers; None where it has none, or one too large."""
    if node.op == "num":
        return node.args[0]
    if node.op in ("sym", "const", "fn", "call", "matrix", "pm", "mp", "sum", "prod", "label", "log"):
        return _exact_function(node) if node.op in ("fn", "sum", "prod") else None
    values = [exact(arg) for arg in node.args]
    if any(value is None for value in values):
        return None
    return _bounded(_apply(node.op, [value for value in values if value is not None]))


def _bounded(value: Fraction | None) -> Fraction | None:
    if value is not None and max(abs(value.numerator), value.denominator).bit_length() > MOST_BITS:
        return None
    return value


def _apply(op: str, values: list[Fraction]) -> Fraction | None:
    first = values[0] if values else Fraction(1)
    match op:
        case "add":
            return sum(values, Fraction(0))
        case "mul":
            return prod(values, start=Fraction(1))
        case "neg":
            return -first
        case "div":
            return first / values[1] if values[1] else None
        case "pow":
            return _power(first, values[1])
        case "root":
            return _power(values[1], 1 / first) if first else None
        case "percent":
            return first / 100
        case "abs":
            return abs(first)
        case "floor":
            return Fraction(first.__floor__())
        case "ceil":
            return Fraction(first.__ceil__())
        case "fact" if first.denominator == 1 and 0 <= first <= LARGEST_FACTORIAL:
            return Fraction(factorial(int(first)))
        case "binom" if all(value.denominator == 1 for value in values) and 0 <= values[1] <= first <= 10_000:
            return Fraction(comb(int(first), int(values[1])))
    return None


def _exact_function(node: Node) -> Fraction | None:
    if node.op in ("sum", "prod"):
        low, high = exact(node.args[1]), exact(node.args[2])
        if low is None or high is None or low.denominator != 1 or high.denominator != 1:
            return None
        if not -1 <= high - low <= MOST_TERMS:
            return None
        terms = [exact(replace(node.args[3], {node.args[0]: num(k)})) for k in range(int(low), int(high) + 1)]
        known = [term for term in terms if term is not None]
        if len(known) < len(terms):
            return None
        return _bounded(sum(known, Fraction(0)) if node.op == "sum" else _apply("mul", known))
    name, *args = node.args
    values = [exact(arg) for arg in args]
    if name not in ("gcd", "lcm", "max", "min", "sgn") or any(value is None for value in values):
        return None
    found = [value for value in values if value is not None]
    if name in ("max", "min"):
        return max(found) if name == "max" else min(found)
    if any(value.denominator != 1 for value in found):
        return None
    integers = [int(value) for value in found]
    if name == "sgn":
        return Fraction((found[0] > 0) - (found[0] < 0))
    return Fraction(gcd(*integers) if name == "gcd" else lcm(*integers))


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if base == 0 and exponent < 0:
        return None
    if exponent.denominator != 1:
        return _root_power(base, exponent)
    size = max(abs(base.numerator), base.denominator).bit_length()
    if size * abs(exponent) > MOST_BITS and abs(base) not in (0, 1):
        return None
    if abs(base) in (0, 1):
        exponent = Fraction(exponent % 2 + 2) if exponent else exponent
    return base ** int(exponent)


def _root_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """A rational root, where there is one: of a positive number, or an odd one of a negative number."""
    degree = exponent.denominator
    if degree > 64 or (base < 0 and degree % 2 == 0):
        return None
    roots = [_integer_root(abs(part), degree) for part in (base.numerator, base.denominator)]
    if roots[0] is None or roots[1] is None:
        return None
    return _power(Fraction(roots[0], roots[1]) * (-1 if base < 0 else 1), Fraction(exponent.numerator))


def _integer_root(value: int, degree: int) -> int | None:
    if value < 2:
        return value
    if degree == 2:
        root = isqrt(value)
        return root if root * root == value else None
    # Newton's method from above, each step of which doubles the digits that are right.
    root = 1 << -(-value.bit_length() // degree)
    while (lower := ((degree - 1) * root + value // root ** (degree - 1)) // degree) < root:
        root = lower
    return root if root**degree == value else None


_LONGEST_SHOWN_BITS = 1_000
_SIGNS = {"add": " + ", "mul": " * ", "div": "/", "pow": "^"}


def as_text(node: Node) -> str:
    """The expression as plain text, for messages."""
    if node.op == "num":
        value = node.args[0]
        is_long = max(abs(value.numerator), value.denominator).bit_length() > _LONGEST_SHOWN_BITS
        return "a number of many digits" if is_long else str(value)
    args = [as_text(arg) if isinstance(arg, Node) else str(arg) for arg in node.args]
    inner = [
        f"({text})" if isinstance(arg, Node) and arg.op in ("add", "mul", "div", "neg", "pow") else text
        for arg, text in zip(node.args, args, strict=True)
    ]
    if node.op in _SIGNS:
        return _SIGNS[node.op].join(inner)
    match node.op:
        case "sym" | "const":
            return args[0]
        case "neg":
            return f"-{inner[0]}"
        case "percent":
            return f"{inner[0]}%"
        case "fact":
            return f"{inner[0]}!"
        case "pm" | "mp":
            return f"±{inner[0]}"
        case "abs":
            return f"|{args[0]}|"
        case "root" if node.args[0] == num(2):
            return f"sqrt({args[1]})"
        case "fn" | "call" | "label":
            return f"{args[0]}({', '.join(args[1:])})"
    return f"{node.op}({', '.join(args)})"
