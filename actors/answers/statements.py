"""From tokens to a form: the statements between separators, and what each of them states.

A statement is a congruence, a relation, a set, a bracketed group, a ratio, or a value with its unit.
"""

from dataclasses import replace
from itertools import pairwise

from actors.answers.forms import (
    Cases,
    Congruence,
    Function,
    Matrix,
    Part,
    Quantity,
    Ratio,
    Reading,
    Region,
    Relation,
    Several,
    Words,
)
from actors.answers.grammar import Grammar
from actors.answers.groups import Tokens, at_top, is_comma, one_group, split_at
from actors.answers.matrices import matrix_of
from actors.answers.nodes import Node, exact, num, sym, walk
from actors.answers.plus_minus import written_out
from actors.answers.quantities import read_quantity
from actors.answers.regions import (
    INFINITY,
    LINE,
    as_region,
    complement,
    intersection,
    order,
    points_of,
    union,
)
from actors.answers.relations import is_relation, read_relation
from actors.answers.tokens import Token, Unread
from actors.answers.words import meaning

_BRACKETS = ("(", "[", "\\{", "langle")
_SET_SIGNS = ("cup", "cap", "setminus", "U")
_DOTS = sym("...")


def read_statements(tokens: Tokens) -> Reading:
    """The form of a whole answer.

    Raises:
        Unread: A part is not read.
    """
    if not tokens:
        raise Unread("nothing but spaces")
    modulo = at_top(tokens, ("pmod", "mod")) or [
        place for place, token in enumerate(tokens) if token.text == "mod"
    ]
    if modulo:
        return _congruence(tokens, modulo[0])
    parts, separators = split_at(tokens, _separates)
    pairs = [(part, _joins(token)) for part, token in zip(parts, [*separators, None], strict=True)]
    statements = [part for part, _ in pairs if part]
    if len(statements) < len(parts) and not _may_be_empty(parts, separators):
        raise Unread("nothing between two separators")
    readings = [reading for part in statements for reading in written_out(_item(part))]
    if len(readings) == 1:
        return _plain(readings[0])
    words = {word for word in (_joins(token) for token in separators) if word}
    return _plain(_together(readings, "or" if "or" in words else "and" if "and" in words else ","))


def _separates(token: Token) -> bool:
    return is_comma(token) or _joins(token) in ("and", "or")


def _joins(token: Token | None) -> str | None:
    if token is None or token.kind != "text":
        return None
    word = token.text.strip(" ,;").lower()
    return {"and": "and", "or": "or", "and/or": "or"}.get(word)


def _may_be_empty(parts: list[Tokens], separators: list[Token]) -> bool:
    """`3, 5, and 7`: a comma and a word together are one separator."""
    doubled = sum(not part for part in parts)
    joined = sum((is_comma(first) and _joins(second) is not None) for first, second in pairwise(separators))
    return doubled == joined and bool(parts[0]) and bool(parts[-1])


def _item(tokens: Tokens) -> Reading:
    """What one statement states."""
    tokens = _with_difference(tokens)
    if tokens[0].text == "begin" and len(tokens) > 1 and tokens[1].text == "cases":
        return _cases(tokens)
    if (place := next(iter(at_top(tokens, ("mid", "nmid", "divisible"))), None)) is not None:
        return _divisibility(tokens, place)
    bars = at_top(tokens, ("|",))
    if len(bars) == 1 and 0 < bars[0] < len(tokens) - 1:
        return _divisibility(tokens, bars[0])
    if is_relation(tokens):
        return read_relation(tokens, _item_or_list)
    if at_top(tokens, _SET_SIGNS):
        return _set_expression(tokens)
    if one_group(tokens, _BRACKETS) or (one_group(tokens, ("{",)) and at_top(tokens[1:-1], (",",))):
        return _group(tokens)
    if (named := _named_set(tokens)) is not None:
        return named
    if at_top(tokens, (":",)):
        parts, _ = split_at(tokens, lambda token: token.kind == "sign" and token.text == ":")
        return Ratio(tuple(Grammar(part).whole() for part in parts))
    reading = read_quantity(tokens)
    if isinstance(reading, Quantity) and any(part.op == "matrix" for part in walk(reading.node)):
        if reading.unit or reading.counted:
            raise Unread("a unit behind a matrix")
        return _vector(matrix_of(reading.node))
    return reading


def _with_difference(tokens: Tokens) -> Tokens:
    r"""`\mathbb{R} - \{0\}`: a minus between sets is their difference."""
    places = [place for place in at_top(tokens, ("-",)) if 0 < place < len(tokens) - 1]
    if (
        not places
        or tokens[places[0] + 1].text != "\\{"
        or tokens[places[0] - 1].text[:6] not in ("mathbb", ")", "]")
    ):
        return tokens
    return [
        replace(token, kind="command", text="setminus") if n in places else token
        for n, token in enumerate(tokens)
    ]


def _item_or_list(tokens: Tokens) -> Reading:
    return _item(tokens)


def _vector(matrix: Matrix) -> Reading:
    rows = len(matrix.entries) // matrix.columns
    if rows == 1 or matrix.columns == 1:
        items = tuple(Quantity(entry) for entry in matrix.entries)
        return Several("tuple", items) if len(items) > 1 else items[0]
    return matrix


def _named_set(tokens: Tokens) -> Reading | None:
    texts = [token.text for token in tokens]
    if texts == ["emptyset"] or texts == ["\\{", "\\}"] or texts == ["{", "}"]:
        return Region(())
    if not texts[0].startswith("mathbb "):
        return None
    letter, rest = texts[0][-1], [text for text in texts[1:] if text not in ("{", "}", "^", "_")]
    if letter == "R" and rest in ([], ["+"], ["-"]):
        positive = Part(num(0), False, INFINITY, False)
        negative = Part(Node("neg", (INFINITY,)), False, num(0), False)
        return Region(((LINE if not rest else positive if rest == ["+"] else negative),))
    known = {"Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}
    return Words(known[letter] if not rest and letter in known else f"the set {letter}{''.join(rest)}")


def _group(tokens: Tokens) -> Reading:
    opening, closing, inner = tokens[0].text, tokens[-1].text, tokens[1:-1]
    opening = "\\{" if opening == "{" else opening  # {1, 2} in plain text
    if not inner:
        if opening == "\\{":
            return Region(())
        raise Unread("an empty pair of brackets")
    if opening == "\\{" and (builder := _set_builder(inner)) is not None:
        return builder
    parts, _ = split_at(inner, is_comma if opening != "\\{" else _separates)
    if any(not part for part in parts):
        raise Unread("nothing between two separators")
    if opening == "[" and all(one_group(part, ("[",)) for part in parts):
        return _matrix_of_rows([split_at(part[1:-1], is_comma)[0] for part in parts])
    items = [_item(part) for part in parts]
    if opening == "\\{":
        return _of_set([reading for item in items for reading in written_out(item)])
    if len(items) == 1:
        return items[0] if opening != "langle" else Several("tuple", tuple(items))
    if any(isinstance(item, Quantity) and item.node == _DOTS for item in items):
        return Several("sequence", tuple(items))
    if len(items) == 2 and (opening, closing) != ("(", ")") and opening != "langle":
        return _interval(items, opening == "[", closing == "]")
    return Several("tuple", tuple(items))


def _matrix_of_rows(rows: list[list[Tokens]]) -> Reading:
    """`[[1, 0], [0, 1]]`."""
    if len({len(row) for row in rows}) != 1:
        raise Unread("a matrix whose rows differ in length")
    return _vector(Matrix(len(rows[0]), tuple(Grammar(cell).whole() for row in rows for cell in row)))


def _of_set(items: list[Reading]) -> Reading:
    if any(isinstance(item, Quantity) and item.node == _DOTS for item in items):
        return Several("sequence", tuple(items))
    return Several("set", tuple(items))


def _interval(items: list[Reading], low_in: bool, high_in: bool) -> Reading:
    ends = [item.node for item in items if isinstance(item, Quantity)]
    if len(ends) != 2:
        raise Unread("an interval between what are no numbers")
    if (order(*ends) or -1) > 0:
        if low_in and high_in:
            return Several("tuple", tuple(items))
        raise Unread("an interval whose ends are in the wrong order")
    return Region((Part(ends[0], low_in, ends[1], high_in),))


def _set_builder(inner: Tokens) -> Reading | None:
    r"""`x : 3 < x \le 4` and `x \in R \mid x > 0`."""
    places = at_top(inner, (":", "mid", "|"))
    if not places:
        return None
    place = places[0] if inner[places[0]].text != "|" or len(places) == 1 else -1
    if place <= 0:
        return None
    condition = read_statements(inner[place + 1 :])
    domain = inner[:place]
    if isinstance(condition, Words) and " in " in condition.text:
        name, _, numbers = condition.text.partition(" in ")
        return Function(f"the set over the {numbers}", (name,), Grammar(domain).whole())
    if not is_relation(domain):
        name = "".join(token.text for token in domain)
        if isinstance(condition, Region) and condition.name not in (None, name):
            raise Unread("a set whose condition is on another unknown")
        return condition
    within, region = as_region(read_relation(domain, _item)), as_region(condition)
    if within is None or region is None:
        raise Unread("a set given by a condition that is not read")
    parts = intersection(within.parts, region.parts)
    if parts is None:
        raise Unread("a set whose ends cannot be ordered")
    return Region(parts, region.name)


def _set_expression(tokens: Tokens) -> Reading:
    parts, signs = split_at(tokens, lambda token: token.kind == "command" and token.text in _SET_SIGNS)
    if any(not part for part in parts):
        raise Unread("a union without one of its sides")
    items = [_item(part) for part in parts]
    regions = [as_region(item) for item in items]
    if any(region is None for region in regions):
        if all(isinstance(item, Several) for item in items) and {sign.text for sign in signs} == {"cup"}:
            return Several("list", tuple(items))
        raise Unread("a union of what are no sets of numbers")
    result = regions[0].parts if regions[0] else ()
    for sign, region in zip(signs, regions[1:], strict=True):
        right = region.parts if region else ()
        if sign.text in ("cup", "U"):
            combined = union([*result, *right])
        else:
            combined = intersection(result, right if sign.text == "cap" else complement(union(right) or ()))
        if combined is None:
            raise Unread("a set whose ends cannot be ordered")
        result = combined
    return Region(result)


def _together(items: list[Reading], word: str) -> Reading:
    """Several statements: a set of numbers, values of several unknowns, or a list."""
    if any(isinstance(item, Quantity) and item.node == _DOTS for item in items):
        return Several("sequence", tuple(items))
    regions = [item for item in items if isinstance(item, Region)]
    named_by = {item.name for item in items if isinstance(item, Region | Quantity) and item.name is not None}
    if len(named_by) > 1 and (regions or word == "or"):
        raise Unread("alternatives for several unknowns")
    if len(regions) == len(items):
        return _joined_regions(regions, word)
    named = {item.name: item for item in items if isinstance(item, Quantity) and item.name is not None}
    if len(named) == len(items) and word != "or":
        return Several("tuple", tuple(named[name] for name in sorted(named)))
    return Several("list", tuple(items))


def _joined_regions(regions: list[Region], word: str) -> Reading:
    result = regions[0].parts
    for region in regions[1:]:
        shared = intersection(result, region.parts)
        if shared is None:
            raise Unread("a set whose ends cannot be ordered")
        joined = union([*result, *region.parts]) or ()
        result = joined if word == "or" or not shared else shared
    return Region(result, regions[0].name)


def _plain(reading: Reading) -> Reading:
    """The plainest form: lists within lists laid open, sets without repeats, one thing as itself."""
    if isinstance(reading, Region):
        points = points_of(reading)
        return reading if points is None else _plain(Several("set", tuple(Quantity(node) for node in points)))
    if not isinstance(reading, Several) or reading.kind in ("tuple", "sequence"):
        if isinstance(reading, Several) and reading.kind == "tuple":
            spread = written_out(reading)
            return reading if len(spread) == 1 else Several("list", tuple(spread))
        return reading
    items: list[Reading] = []
    for item in reading.items:
        items += item.items if isinstance(item, Several) and item.kind == "list" else [item]
    return items[0] if len(items) == 1 else replace(reading, items=tuple(items))


def _congruence(tokens: Tokens, place: int) -> Reading:
    before, after = list(tokens[:place]), list(tokens[place + 1 :])
    if before and before[-1].text == "(" and after and after[-1].text == ")":
        before, after = before[:-1], after[:-1]
    if after and after[0].text == "{" and not one_group(after, ("{",)):
        raise Unread("text behind the modulus")
    modulus = Grammar(after).whole()
    name = None
    if signs := at_top(before, ("equiv", "=")):
        left = Grammar(before[: signs[0]]).whole()
        before = before[signs[0] + 1 :]
        if at_top(before, ("equiv", "=")):
            raise Unread("several congruences in one")
        if left.op != "sym":
            parts = [Node("add", (left, Node("neg", (Grammar(before).whole(),))))]
            return Congruence(None, parts[0], modulus)
        name = left.args[0]
    parts_of, _ = split_at(before, _separates)
    residues = [reading for part in parts_of if part for reading in written_out(read_quantity(part))]
    classes = tuple(Congruence(name, item.node, modulus) for item in residues if isinstance(item, Quantity))
    if len(classes) != len(residues) or not classes:
        raise Unread("a congruence without its residue")
    return classes[0] if len(classes) == 1 else Several("list", classes)


def _divisibility(tokens: Tokens, place: int) -> Reading:
    """`3 | n` as the class of 0 modulo 3; what does not divide is a relation."""
    left, right = Grammar(tokens[:place]).whole(), Grammar(tokens[place + 1 :]).whole()
    if tokens[place].text == "divisible":
        left, right = right, left
    if tokens[place].text == "nmid":
        return Relation("∤", left, right)
    if right.op == "sym" and exact(left) is not None:
        return Congruence(right.args[0], num(0), left)
    return Relation("∣", left, right)


def _cases(tokens: Tokens) -> Reading:
    if tokens[-2].text != "end":
        raise Unread("text after the cases")
    lines, _ = split_at(tokens[2:-2], lambda token: token.kind == "sign" and token.text == "\\\\")
    rows = []
    for line in lines:
        if not line:
            continue
        cells, _ = split_at(line, lambda token: token.kind == "sign" and token.text == "&")
        if len(cells) == 1:
            cells, _ = split_at(line, is_comma)
        words = [
            token
            for token in cells[-1]
            if token.kind != "text" or meaning(token.text) not in ("if", "for", "when")
        ]
        value = [token for token in cells[0] if not (is_comma(token) and token is cells[0][-1])]
        if len(cells) != 2 or not words or not value:
            raise Unread("a case without its condition")
        is_rest = len(words) == 1 and words[0].kind == "text"
        if is_rest and meaning(words[0].text) not in ("otherwise", "else", "elsewhere"):
            raise Unread(f"the condition {words[0].text!r}")
        condition: Reading = Words("otherwise") if is_rest else read_statements(words)
        rows.append((_item(value), condition))
    return Cases(tuple(rows))
