"""Equations and inequalities: a value of an unknown, a set of numbers, a function, or a relation as such."""

import re
from dataclasses import replace
from itertools import pairwise

from actors.answers.forms import Function, Part, Quantity, Reading, Region, Relation, Several, Words
from actors.answers.grammar import Grammar
from actors.answers.groups import ReadItem, Tokens, at_top, is_comma, one_group, split_at
from actors.answers.nodes import Node, exact, num, symbols
from actors.answers.regions import (
    INFINITY,
    MINUS_INFINITY,
    as_region,
    complement,
    is_empty,
    order,
    point,
    union,
)
from actors.answers.tokens import Unread
from actors.answers.values import equal_values, real_value
from actors.answers.words import counted

_SIGNS = {
    "=": "=",
    "<": "<",
    ">": ">",
    "le": "≤",
    "ge": "≥",
    "ne": "≠",
    "approx": "≈",
    "in": "∈",
    "notin": "∉",
}
_LABEL = re.compile(
    r"[A-Z]{2,}|\|[A-Z]{2,}\||\[[A-Z]{3,}\]|mangle[A-Z]{1,3}|max|min|frac\{d[a-z]\}\{d[a-z]\}|d[a-z]/d[a-z]"
)
_TURNED = {">": "<", "≥": "≤"}


def is_relation(tokens: Tokens) -> bool:
    """Whether a sign of equality, order or membership stands outside all brackets."""
    return bool(at_top(tokens, _SIGNS))


def read_relation(tokens: Tokens, read_item: ReadItem) -> Reading:
    """What an equation, inequality or chain of them states.

    Raises:
        Unread: A side is not read, or the chain contradicts itself.
    """
    tokens = _with_plain_signs(tokens)
    places = at_top(tokens, _SIGNS)
    signs = [_SIGNS[tokens[place].text] for place in places]
    ends = [-1, *places, len(tokens)]
    sides = [tokens[start + 1 : end] for start, end in pairwise(ends)]
    if any(not side for side in sides):
        raise Unread("a relation without one of its sides")
    if signs[-1] == "≈":
        return _rounded(sides, signs, read_item)
    if set(signs) == {"="}:
        return _equation(sides, read_item)
    if signs in (["∈"], ["∉"]):
        return _membership(sides, signs[0], read_item)
    return _inequality([Grammar(side).whole() for side in sides], signs)


def _with_plain_signs(tokens: Tokens) -> Tokens:
    """`<=`, `>=` and `!=` of plain text as one sign."""
    joined = list(tokens)
    for place in range(len(joined) - 1, 0, -1):
        pair = joined[place - 1].text + joined[place].text
        if pair in ("<=", ">=", "!=") and joined[place].kind == "sign":
            name = {"<=": "le", ">=": "ge", "!=": "ne"}[pair]
            joined[place - 1 : place + 1] = [replace(joined[place - 1], kind="command", text=name)]
    return joined


def _rounded(sides: list[Tokens], signs: list[str], read_item: ReadItem) -> Reading:
    """The exact value before `≈`, where the decimal after it agrees."""
    if len(signs) > 1:
        raise Unread("several signs around a rounded value")
    value, rounded = read_item(sides[0]), read_item(sides[-1])
    if not isinstance(value, Quantity) or not isinstance(rounded, Quantity):
        raise Unread("a rounded value of what is no number")
    if symbols(value.node) and value.node.op == "sym" and not symbols(rounded.node):
        return replace(rounded, name=value.node.args[0])
    near = real_value(Node("add", (value.node, Node("neg", (rounded.node,)))))
    if near is None or abs(float(near)) > 6.0 / 10 ** min((rounded.places or 0) + 1, 300):
        raise Unread("a value and a rounded value that differ")
    return value


def _equation(sides: list[Tokens], read_item: ReadItem) -> Reading:
    if (function := _function(sides, read_item)) is not None:
        return function
    if len(sides) == 2 and all(_label(side) is not None for side in sides):
        return Relation("=", Grammar(sides[0]).whole(), Grammar(sides[1]).whole())
    if (entries := _entries(sides, read_item)) is not None:
        return entries
    last = read_item(sides[-1])
    names = [_name(side) for side in sides[:-1]]
    if all(name is not None for name in names):
        return _named([name for name in names if name], last, sides)
    if len(sides) == 2 and (name := _name(sides[1])) is not None:
        return _named([name], read_item(sides[0]), sides[::-1])
    return _chain([Grammar(side).whole() for side in sides if _name(side) is None or side is sides[-1]],
                  next((name for name in names if name), None), last)  # fmt: skip


def _entries(sides: list[Tokens], read_item: ReadItem) -> Reading | None:
    """`(x, y) = (2, 3)`: a tuple whose entries have names, or a list of such tuples."""
    if len(sides) != 2 or not one_group(sides[0], ("(",)):
        return None
    parts, _ = split_at(sides[0][1:-1], is_comma)
    names = [_name(part) for part in parts]
    if len(names) < 2 or any(name is None for name in names):
        return None
    value = read_item(sides[1])
    if isinstance(value, Several) and value.kind == "tuple" and len(value.items) == len(names):
        items = [item for item in value.items if isinstance(item, Quantity)]
        if len(items) == len(names):
            pairs = sorted(zip([name or "" for name in names], items, strict=True), key=lambda pair: pair[0])
            return Several("tuple", tuple(replace(item, name=name) for name, item in pairs))
    return value


def _named(names: list[str], value: Reading, sides: list[Tokens]) -> Reading:
    if isinstance(value, Quantity):
        if symbols(value.node) & set(names):
            return Relation("=", Grammar(sides[0]).whole(), Grammar(sides[-1]).whole())
        if len(names) == 1:
            return replace(value, name=names[0])
        return Several("tuple", tuple(replace(value, name=name) for name in sorted(names)))
    if isinstance(value, Region):
        return replace(value, name=names[0])
    return value


def _chain(nodes: list[Node], name: str | None, last: Reading) -> Reading:
    """`4 * 3 = 12`: sides without variables must be equal; two sides with variables are an equation."""
    constant = [not symbols(node) for node in nodes]
    if all(constant) and isinstance(last, Quantity):
        if any(not equal_values(first, second) for first, second in pairwise(nodes)):
            raise Unread("a chain of values that are not equal")
        return replace(last, name=name)
    if len(nodes) == 2:
        return Relation("=", *nodes)
    agree = not any(constant) and all(equal_values(nodes[0], node) for node in nodes[1:])
    if agree and isinstance(last, Quantity):
        return replace(last, name=name)
    raise Unread("a chain of several equations")


def _name(side: Tokens) -> str | None:
    """The name of an unknown that is the whole side."""
    if side and (label := _label(side)) is not None:
        return label
    if (
        len(side) > 12
        or not side
        or side[0].kind == "number"
        or side[0].text in ("(", "-", "+", "frac", "sqrt")
    ):
        return None
    try:
        node = Grammar(side).whole()
    except Unread:
        return None
    if node.op == "call" and all(exact(arg) is not None for arg in node.args[1:]):
        return str(node)
    if node == Node("const", ("i",)) or node == Node("const", ("e",)):
        return None
    return node.args[0] if node.op == "sym" and node.args[0] != "..." else None


def _label(side: Tokens) -> str | None:
    r"""A quantity that is not one letter: the length AB or |AB|, the area [ABC], `\text{Area}`, dy/dx."""
    if all(token.kind == "text" for token in side):
        return counted(" ".join(token.text for token in side))
    text = "".join(token.text for token in side)
    return text if _LABEL.fullmatch(text) else None


def _function(sides: list[Tokens], read_item: ReadItem) -> Reading | None:
    """`f(x) = body`, for any letter before the bracket whose content is variables alone."""
    head = sides[0]
    texts = [token.text for token in head]
    if len(sides) != 2 or len(texts) < 4 or head[0].kind != "letter" or "(" not in texts or texts[-1] != ")":
        return None
    start = texts.index("(")
    parameters = [text for text in texts[start + 1 : -1] if text != ","]
    if not all(len(text) == 1 and text.isalpha() for text in parameters) or len(set(parameters)) != len(
        parameters
    ):
        return None
    body = read_item(sides[1])
    if not isinstance(body, Quantity):
        return None
    return Function("".join(texts[:start]), tuple(parameters), body.node)


def _membership(sides: list[Tokens], sign: str, read_item: ReadItem) -> Reading:
    region = as_region(read_item(sides[1]))
    name = _name(sides[0])
    if name is None:
        raise Unread("membership of what is no unknown")
    if region is None:
        value = read_item(sides[1])
        if sign == "∈" and isinstance(value, Several | Quantity):
            return value
        if sign == "∈" and isinstance(value, Words):
            return Words(f"{name} in {value.text}")
        raise Unread("membership in what is no set of numbers")
    return Region(region.parts if sign == "∈" else complement(region.parts), name)


def _inequality(nodes: list[Node], signs: list[str]) -> Reading:
    if len(nodes) == 2 and (region := _half_line(nodes[0], signs[0], nodes[1])) is not None:
        return region
    if len(nodes) == 3 and nodes[1].op == "sym" and all(sign in "<≤" for sign in signs):
        part = Part(nodes[0], signs[0] == "≤", nodes[2], signs[1] == "≤")
        if not symbols(nodes[0]) and not symbols(nodes[2]):
            return Region(() if is_empty(part) else (part,), nodes[1].args[0])
    if len(nodes) == 3 and nodes[1].op == "sym" and all(sign in ">≥" for sign in signs):
        return _inequality(nodes[::-1], [_turn(sign) for sign in signs[::-1]])
    steps = zip(nodes, signs, nodes[1:], strict=False)
    relations = tuple(_relation(left, sign, right) for left, sign, right in steps)
    return relations[0] if len(relations) == 1 else Several("set", relations)


def _turn(sign: str) -> str:
    return {"<": ">", "≤": "≥", ">": "<", "≥": "≤"}.get(sign, sign)


def _relation(left: Node, sign: str, right: Node) -> Relation:
    return Relation(_TURNED[sign], right, left) if sign in _TURNED else Relation(sign, left, right)


def _half_line(left: Node, sign: str, right: Node) -> Region | None:
    """`x < a`, `x ≠ a` and `|x| < a` as sets of numbers."""
    if symbols(left) == frozenset() and right.op in ("sym", "abs") and sign != "≠":
        left, sign, right = right, _turn(sign), left
    if symbols(right) or real_value(right) is None:
        return None
    if left.op == "abs" and left.args[0].op == "sym":
        return _within(left.args[0].args[0], sign, right)
    if left.op != "sym":
        return None
    below = Part(MINUS_INFINITY, False, right, sign == "≤")
    above = Part(right, sign == "≥", INFINITY, False)
    parts = {"<": (below,), "≤": (below,), ">": (above,), "≥": (above,), "≠": complement((point(right),))}[
        sign
    ]
    return Region(tuple(part for part in parts if not is_empty(part)), left.args[0])


def _within(name: str, sign: str, bound: Node) -> Region | None:
    if sign not in ("<", "≤", ">", "≥") or (order(bound, num(0)) or 0) < 0:
        return None
    minus = num(-bound.args[0]) if bound.op == "num" else Node("neg", (bound,))
    inner = Part(minus, sign in ("≤", ">"), bound, sign in ("≤", ">"))
    if sign in ("<", "≤"):
        return Region(() if is_empty(inner) else (inner,), name)
    inner = Part(minus, sign == ">", bound, sign == ">")
    return Region(complement(union([inner]) or ()), name)
