r"""Writes out `\pm`: every choice of its signs. `\mp` takes the opposite sign of `\pm`."""

from dataclasses import replace
from itertools import product

from actors.answers.forms import Function, Quantity, Reading, Relation, Several
from actors.answers.nodes import Node, walk
from actors.answers.tokens import Unread

_MOST_SIGNS = 4


def written_out(reading: Reading) -> list[Reading]:
    """The readings that one reading with plus-minus signs stands for."""
    nodes = list(_nodes(reading))
    signs = sum(part.op == "pm" for node in nodes for part in walk(node))
    opposite = any(part.op == "mp" for node in nodes for part in walk(node))
    if not signs and not opposite:
        return [reading]
    if signs > _MOST_SIGNS:
        raise Unread(f"{signs} plus-minus signs")
    choices = [(True,) * signs, (False,) * signs] if opposite else product((True, False), repeat=signs)
    return [_with_signs(reading, list(choice)) for choice in choices]


def _nodes(reading: Reading) -> list[Node]:
    if isinstance(reading, Quantity):
        return [reading.node]
    if isinstance(reading, Function):
        return [reading.body]
    if isinstance(reading, Relation):
        return [reading.left, reading.right]
    if isinstance(reading, Several):
        return [node for item in reading.items for node in _nodes(item)]
    return []


def _with_signs(reading: Reading, signs: list[bool]) -> Reading:
    if isinstance(reading, Quantity):
        return replace(reading, node=_signed(reading.node, signs))
    if isinstance(reading, Function):
        return replace(reading, body=_signed(reading.body, signs))
    if isinstance(reading, Relation):
        return replace(reading, left=_signed(reading.left, signs), right=_signed(reading.right, signs))
    if isinstance(reading, Several):
        return replace(reading, items=tuple(_with_signs(item, signs) for item in reading.items))
    return reading


def _signed(node: Node, signs: list[bool], first: bool = True) -> Node:
    """The node with the next signs of the list, which is used up; the last one serves `mp`."""
    if node.op == "pm":
        is_plus = signs.pop(0) if len(signs) > 1 else signs[0]
        inner = _signed(node.args[0], signs)
        return inner if is_plus else Node("neg", (inner,))
    if node.op == "mp":
        inner = _signed(node.args[0], signs)
        return Node("neg", (inner,)) if not signs or signs[0] else inner
    args = tuple(_signed(arg, signs) if isinstance(arg, Node) else arg for arg in node.args)
    return Node(node.op, args)
