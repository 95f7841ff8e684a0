"""Whether two expressions have the same value: exactly for fractions, else by digits and then by algebra.

Expressions with variables are compared at fixed points, so that the outcome is always the same.
"""

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from actors.answers.nodes import (
    MOST_BITS,
    MOST_TERMS,
    Node,
    NoValue,
    TooLarge,
    exact,
    num,
    replace,
    symbols,
    walk,
)
from actors.answers.numerals import word_set

FEW_DIGITS, MANY_DIGITS = 40, 1_000
_LARGEST_EXPONENT = 10**10
_LARGEST_DEGREE = 10**4
_INTEGER_LETTERS = word_set("i j k l m n p q r s t N M K L d")
POINTS, MANY_POINTS = 5, 60


def equal_values(first: Node, second: Node) -> bool:
    """Whether two expressions are equal wherever both have a value.

    A difference that 40 digits do not show is looked for with 1,000 digits, and by sympy, which also sees
    one that is smaller. Expressions with factorials, and others of whole numbers (with a floor, a sum, a
    power of -1), are compared at whole numbers. A number too large to compute equals only itself.
    """
    if first == second:
        return True
    try:
        one, other = exact(first), exact(second)
        if one is not None and other is not None:
            return one == other
        if has_infinity(first) or has_infinity(second):
            return signed_infinity(first) is not None and signed_infinity(first) == signed_infinity(second)
        names = sorted(symbols(first) | symbols(second))
        if any(
            part.op in ("fact", "binom", "sum", "prod") for node in (first, second) for part in walk(node)
        ):
            return _equal_at(first, second, names, whole=True)
        if _equal_at(first, second, names, whole=False):
            return True
        may_be_whole = names and set(names) <= _INTEGER_LETTERS and (_is_whole(first) or _is_whole(second))
        return bool(may_be_whole) and _equal_at(first, second, names, whole=True)
    except (NoValue, TooLarge):
        return False


def _steps(node: Node) -> bool:
    """Whether the value jumps, so that few points show little."""
    return any(part.op in ("floor", "ceil") or part.args[0] in ("gcd", "lcm", "sgn") for part in walk(node))


def has_infinity(node: Node) -> bool:
    """Whether infinity stands in the expression."""
    return any(part.args == ("oo",) for part in walk(node))


def signed_infinity(node: Node) -> int | None:
    """1 for infinity, -1 for minus infinity, None for every other expression."""
    if node == Node("const", ("oo",)):
        return 1
    return -1 if node.op == "neg" and node.args[0] == Node("const", ("oo",)) else None


def real_value(node: Node) -> Any:
    """The value without variables, as a fraction or a real number of 40 digits; None where there is none."""
    try:
        value = exact(node)
        if value is not None:
            return value
        if signed := signed_infinity(node):
            return signed * float("inf")
        if symbols(node):
            return None
        found = number(node, {}, FEW_DIGITS)
        import mpmath

        return found if isinstance(found, mpmath.mpf) else None
    except (NoValue, TooLarge):
        return None


def _equal_at(first: Node, second: Node, names: list[str], whole: bool) -> bool:
    compared = 0
    close: list[Mapping[str, Node]] = []
    count = MANY_POINTS if names and (_steps(first) or _steps(second)) else POINTS
    for point in _points(tuple(names), whole, count):
        verdict = _compare_at(first, second, point, FEW_DIGITS)
        if verdict is False:
            return False
        if verdict is not None:
            compared += 1
            close.append(point)
    if not compared or (names and compared < 2):
        return False
    if any(_compare_at(first, second, point, MANY_DIGITS) is False for point in close[:2]):
        return False
    from actors.answers.algebra import differ_slightly

    return not differ_slightly(first, second, close[0])


def _compare_at(first: Node, second: Node, point: Mapping[str, Node], digits: int) -> bool | None:
    """Whether two values agree; None where they cannot be compared: no value, or only one of them is real."""
    import mpmath

    try:
        rational = exact(replace(first, point)), exact(replace(second, point))
        if rational[0] is not None and rational[1] is not None:
            return rational[0] == rational[1]
        one = number(first, point, digits)
        other = number(second, point, digits)
    except NoValue:
        return None
    is_real = isinstance(one, mpmath.mpf), isinstance(other, mpmath.mpf)
    with mpmath.workdps(digits + 10):
        if is_real[0] != is_real[1]:
            # A logarithm or root of a negative value is not real; at positive ones the two must be alike.
            return None if any(node.args[0] < 0 for node in point.values()) else False
        size = max(abs(one), abs(other))
        difference = abs(one - other)
        if difference <= size * mpmath.mpf(10) ** (-(digits - 8)):
            return True
        # Both may be zero, to the digits that were computed: then more digits bring them closer to zero.
        if size < mpmath.mpf(10) ** (-(digits // 2)) and digits == FEW_DIGITS:
            return _both_vanish(first, second, point, size)
        return False


def _both_vanish(first: Node, second: Node, point: Mapping[str, Node], size: Any) -> bool:
    import mpmath

    again = max(abs(number(node, point, 2 * FEW_DIGITS)) for node in (first, second))
    return bool(again < size * mpmath.mpf(10) ** (-FEW_DIGITS // 2))


@lru_cache(maxsize=256)
def _points(names: tuple[str, ...], whole: bool, count: int = POINTS) -> tuple[Mapping[str, Node], ...]:
    if not names:
        return ({},)
    # Beyond the first few, every second point is whole: a value that jumps does so there.
    return tuple(
        {name: _value_of(name, index, whole or (index >= POINTS and index % 2 == 1)) for name in names}
        for index in range(count)
    )


def _value_of(name: str, index: int, whole: bool) -> Node:
    """A fixed value for a variable: positive ones, then one of either sign. `n > k` for whole numbers."""
    seed = int.from_bytes(hashlib.blake2b(f"{name} {index}".encode(), digest_size=4).digest(), "big")
    if whole:
        offset = 7 if name in ("n", "N", "d", "m", "M") else 1
        return num(offset + seed % 6 + index if index < POINTS else 1 + (index * (1 + ord(name[0]) % 3)) % 61)
    value = Fraction(seed % 997 + 1009, 211 + (seed // 997) % 499)
    if index == 2:
        value /= 7
    return num(-value if index >= 3 and (seed + index) % 2 else value)


def _is_whole(node: Node) -> bool:
    return any(
        part.op in ("floor", "ceil")
        or (part.op == "pow" and (exact(part.args[0]) or 0) < 0)
        or (part.op == "fn" and part.args[0] in ("sin", "cos", "tan"))
        for part in walk(node)
    )


def number(node: Node, point: Mapping[str, Node], digits: int) -> Any:
    """The value at a point to about so many digits, as a real or complex number of mpmath.

    Raises:
        NoValue: There is no value.
        TooLarge: A power or factorial is too large.
    """
    import mpmath

    with mpmath.workdps(digits + 15):
        try:
            value = _Evaluation(point, mpmath).value(node)
        except (ZeroDivisionError, ValueError, OverflowError, TypeError, mpmath.libmp.NoConvergence) as error:
            raise NoValue(str(error)) from None
        if isinstance(value, mpmath.mpc) and abs(value.imag) <= abs(value.real) * mpmath.mpf(10) ** (
            -digits - 5
        ):
            value = value.real
        if not mpmath.isfinite(value):
            raise NoValue("infinite")
        return +value


class _Evaluation:
    """One evaluation of an expression, in the precision of the context."""

    def __init__(self, point: Mapping[str, Node], mp: Any) -> None:
        self.point = point
        self.mp = mp

    def value(self, node: Node) -> Any:
        op, args = node
        if op == "num":
            return self.mp.mpf(args[0].numerator) / args[0].denominator
        if op == "sym":
            if args[0] not in self.point:
                raise NoValue(f"no value for {args[0]}")
            return self.value(self.point[args[0]])
        if op == "const":
            return self._constant(args[0])
        if op in ("fn", "call"):
            return self._function(args[0], [self.value(arg) for arg in args[1:]], op)
        if op in ("sum", "prod"):
            return self._terms(node)
        if op in ("matrix", "pm", "mp", "label"):
            raise NoValue(f"{op} has no single value")
        return self._operation(op, [self.value(arg) for arg in args])

    def _constant(self, name: str) -> Any:
        if name == "oo":
            raise NoValue("infinity")
        return {"pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.mpc(0, 1)}[name]

    def _operation(self, op: str, values: list[Any]) -> Any:
        mp, first = self.mp, values[0]
        match op:
            case "add":
                return mp.fsum(values)
            case "mul":
                return mp.fprod(values)
            case "neg":
                return -first
            case "div":
                return first / values[1]
            case "pow":
                return self._power(first, values[1])
            case "root":
                return self._nth_root(first, values[1])
            case "percent":
                return first / 100
            case "degree":
                return first * mp.pi / 180
            case "abs":
                return abs(first)
            case "floor":
                return self._rounded(first, mp.floor)
            case "ceil":
                return self._rounded(first, mp.ceil)
            case "fact":
                return self._factorial(first)
            case "binom":
                self._factorial(first, compute=False)
                return mp.binomial(first, values[1])
            case "log":
                return mp.log(values[1]) / mp.log(first)
        raise NoValue(op)

    def _power(self, base: Any, exponent: Any) -> Any:
        mp = self.mp
        if base == 0:
            if not isinstance(exponent, mp.mpf) or exponent <= 0:
                raise NoValue("a power of zero")
            return mp.mpf(0)
        if abs(exponent) > _LARGEST_EXPONENT or abs(exponent) * abs(mp.log(abs(base))) > _LARGEST_EXPONENT:
            raise TooLarge("a power")
        return mp.power(base, exponent)

    def _nth_root(self, degree: Any, value: Any) -> Any:
        mp = self.mp
        if degree == 2:
            return mp.sqrt(value)
        if not isinstance(degree, mp.mpf) or abs(degree) > _LARGEST_DEGREE:
            raise TooLarge("the degree of a root")
        is_odd = degree == int(degree) and int(degree) % 2 == 1
        if is_odd and isinstance(value, mp.mpf) and value < 0:
            return -mp.root(-value, int(degree))
        return self._power(value, 1 / degree)

    def _rounded(self, value: Any, direction: Any) -> Any:
        """The floor or ceiling; a value that is whole but for its last digits is taken as whole."""
        nearest = self.mp.nint(value)
        if abs(value - nearest) < self.mp.mpf(10) ** (-self.mp.mp.dps + 12):
            return nearest
        return direction(value)

    def _factorial(self, value: Any, compute: bool = True) -> Any:
        if abs(value) > 10**6:
            raise TooLarge("a factorial")
        if value != int(value.real):
            raise NoValue("a factorial of what is not whole")
        return self.mp.gamma(value + 1) if compute else None

    def _terms(self, node: Node) -> Any:
        variable, low, high, body = node.args
        ends = [self.value(low), self.value(high)]
        if any(not isinstance(end, self.mp.mpf) or abs(end) > _LARGEST_EXPONENT for end in ends):
            raise TooLarge("the end of a sum")
        if any(end != int(end) for end in ends) or not -1 <= ends[1] - ends[0] <= MOST_TERMS:
            raise NoValue("a sum between numbers that are not whole, or too far apart")
        before = self.point
        values = []
        for k in range(int(ends[0]), int(ends[1]) + 1):
            self.point = {**before, variable: num(k)}
            values.append(self.value(body))
        self.point = before
        return self.mp.fsum(values) if node.op == "sum" else self.mp.fprod(values)

    def _function(self, name: str, values: list[Any], op: str) -> Any:
        mp, first = self.mp, values[0]
        if op == "call":  # an unknown function, as one that no identity fits
            seed = sum(ord(letter) for letter in name)
            return mp.fsum(
                mp.sin(value * (seed + k)) + value**2 / (seed + k) for k, value in enumerate(values, 1)
            )
        if any(mp.mag(value) > MOST_BITS for value in values if value):
            raise TooLarge(f"the argument of {name}")
        if name == "exp":
            return self._power(+mp.e, first)
        if name in ("ln", "log"):
            return mp.log(first)
        if name in ("max", "min"):
            return max(values) if name == "max" else min(values)
        if name == "sgn":
            return mp.sign(first)
        known = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec",
                 "arccsc": "acsc", "arsinh": "asinh", "arcosh": "acosh", "artanh": "atanh"}  # fmt: skip
        function = getattr(mp, known.get(name, name), None)
        if name in ("gcd", "lcm", "det", "dim", "deg") or function is None or len(values) > 1:
            alike = name in ("gcd", "lcm") and all(isinstance(value, mp.mpf) for value in values)
            return self._function(name, sorted(values) if alike else values, "call")
        return function(first)


def sample_point(first: Node, second: Node) -> Mapping[str, Node]:
    """A point at which two expressions may be compared."""
    return _points(tuple(sorted(symbols(first) | symbols(second))), False)[0]
