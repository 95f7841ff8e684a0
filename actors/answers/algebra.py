"""Differences too small for digits, found by sympy: the terms that two expressions share cancel exactly."""

from collections.abc import Mapping
from typing import Any

from actors.answers.nodes import MOST_BITS, Node, NoValue, TooLarge, exact

_LARGEST_EXPANSION = 24
"""Exponents of sums up to this one are multiplied out."""


def differ_slightly(first: Node, second: Node, point: Mapping[str, Node]) -> bool:
    """Whether two values that agree to 1,000 digits differ all the same.

    sympy takes one expression from the other. What is left, if anything, is either a sum that cancels, which
    1,000 digits have shown to be zero, or a value of its own, such as exp(-5000).
    """
    try:
        rest = _to_sympy(first, point) - _to_sympy(second, point)
    except (TooLarge, NoValue, NotImplementedError):
        return False
    import sympy

    rest = sympy.expand(rest, power_exp=False) if _small(rest) else rest
    if rest == 0 or (isinstance(rest, sympy.Add) and len(rest.args) > 4):
        return False
    value = rest.evalf(15)
    return bool(value.is_number and value != 0 and getattr(value, "_prec", 1) > 1 and _tiny(value))


def _tiny(value: Any) -> bool:
    import sympy

    size = sympy.Abs(value)
    return bool(size != 0 and size < sympy.Float(10) ** -30)


def _small(rest: Any) -> bool:
    import sympy

    return all(
        not power.exp.is_Integer or abs(power.exp) <= _LARGEST_EXPANSION or power.base.is_Number
        for power in rest.atoms(sympy.Pow)
    )


def _to_sympy(node: Node, point: Mapping[str, Node]) -> Any:
    import sympy

    value = exact(node)
    if value is not None:
        return sympy.Rational(value.numerator, value.denominator)
    op, args = node
    if op == "sym":
        return _to_sympy(point[args[0]], point) if args[0] in point else sympy.Symbol(args[0])
    if op == "const":
        if args[0] == "oo":
            raise NoValue("infinity")
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[args[0]]
    if op in ("fn", "log"):
        return _function(node, point)
    if op in ("call", "matrix", "pm", "mp", "sum", "prod", "label", "num"):
        raise NotImplementedError(op)
    return _operation(op, [_to_sympy(arg, point) for arg in args])


def _operation(op: str, values: list[Any]) -> Any:
    import sympy

    first = values[0]
    match op:
        case "add":
            return sympy.Add(*values)
        case "mul":
            return sympy.Mul(*values)
        case "neg":
            return -first
        case "div":
            if values[1] == 0:
                raise NoValue("a division by zero")
            return first / values[1]
        case "pow":
            return _power(first, values[1])
        case "root":
            return _power(values[1], 1 / first)
        case "percent":
            return first / 100
        case "degree":
            return first * sympy.pi / 180
        case "abs":
            return sympy.Abs(first)
    raise NotImplementedError(op)


def _power(base: Any, exponent: Any) -> Any:
    if base.is_Rational and exponent.is_Rational:
        bits = max(abs(base.p), base.q).bit_length() * max(1, abs(exponent.p) // exponent.q)
        if bits > MOST_BITS // 16 or (base == 0 and exponent < 0):
            raise TooLarge("a power")
    return base**exponent


def _function(node: Node, point: Mapping[str, Node]) -> Any:
    import sympy

    if node.op == "log":
        base, argument = (_to_sympy(arg, point) for arg in node.args)
        return sympy.log(argument) / sympy.log(base)
    name, *args = node.args
    names = {"ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan"}
    if len(args) > 1 or name not in (*names, "log", "exp", "sin", "cos", "tan", "cot"):
        raise NotImplementedError(name)
    return getattr(sympy, names.get(name, name))(_to_sympy(args[0], point))
