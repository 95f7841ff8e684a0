"""A value with its unit: an expression, then words. The words must be a unit, or name what is counted."""

from dataclasses import replace
from fractions import Fraction

from actors.answers.forms import Based, Quantity, Reading
from actors.answers.grammar import Grammar
from actors.answers.groups import Tokens
from actors.answers.nodes import Node, exact, num
from actors.answers.tokens import Token, Unread
from actors.answers.units import Unit, read_unit
from actors.answers.words import SCALES, base_word, counted, number_word

_CURRENCIES = {"dollar": "dollar", "euro": "euro", "pound": "quid", "yen": "yen", "rupee": "rupee"}
_SUFFIXES = {"permille": "permille", **_CURRENCIES}
_ROOT_UNITS = {"percent": "percent", "degree": "degree"}


def read_quantity(tokens: Tokens) -> Reading:
    """The value of an expression, with a currency before it or words after it.

    Raises:
        Unread: A part is not read.
    """
    if not tokens:
        raise Unread("nothing between two separators")
    tokens = list(tokens)
    currency = _take_currency(tokens)
    end = next((place for place, token in enumerate(tokens) if _starts_tail(token)), len(tokens))
    tail = tokens[end:]
    if end == 0:
        raise Unread(f"the words {' '.join(token.text for token in tail)!r}")
    node = Grammar(tokens[:end]).whole()
    quantity = Quantity(node, places=_places(tokens[:end]))
    if node.op in _ROOT_UNITS:
        quantity = Quantity(node.args[0], read_unit(_ROOT_UNITS[node.op]), places=_places(tokens[: end - 1]))
    if currency:
        quantity = replace(quantity, unit=currency)
    return _with_tail(quantity, tail) if tail else quantity


def _take_currency(tokens: list[Token]) -> Unit | None:
    for place, token in enumerate(tokens[:2]):
        if token.kind == "command" and token.text in _CURRENCIES and (place == 0 or tokens[0].text in "+-"):
            del tokens[place]
            return read_unit(_CURRENCIES[token.text])
    return None


def _starts_tail(token: Token) -> bool:
    return token.kind == "text" or (token.kind == "command" and token.text in _SUFFIXES)


def _places(tokens: Tokens) -> int | None:
    """Digits after the point where the tokens are one number, with or without a sign."""
    unsigned = tokens[1:] if len(tokens) == 2 and tokens[0].text in ("-", "+") else tokens
    return unsigned[0].places if len(unsigned) == 1 else None


def _with_tail(quantity: Quantity, tail: list[Token]) -> Reading:
    words = _joined(tail)
    first, _, rest = words.partition(" ")
    if first.lower() in SCALES:
        quantity = Quantity(_times(quantity.node, SCALES[first.lower()]), quantity.unit)
        if not rest:
            return quantity
        words = rest.removeprefix("of ").strip()
    unit = read_unit(words)
    if unit is not None and quantity.unit is None:
        return replace(quantity, unit=unit)
    if unit is not None and quantity.unit is not None:
        return replace(quantity, unit=_product(quantity.unit, unit, words))
    if words.startswith("(") and words.endswith(")"):
        return _restated(quantity, words.strip("() "))
    if (base := base_word(words)) is not None and "base" in words and _is_whole(quantity.node):
        return _in_base(quantity.node, base)
    if quantity.unit is None and unit is None and " " in words and (unit := read_unit(words.split()[0])):
        quantity, words = replace(quantity, unit=unit), words.partition(" ")[2]
    noun = counted(words)
    if noun is None:
        raise Unread(f"the words {words!r} after a value")
    return replace(quantity, counted=noun)


def _joined(tail: list[Token]) -> str:
    """The words, with the signs of a unit such as `cm^2` and `km/h`."""
    text = ""
    for token in tail:
        word = _SUFFIXES.get(token.text, token.text)
        if token.kind == "command" and token.text in ("cdot", "times"):
            word = "*"
        elif token.kind == "command" and token.text not in _SUFFIXES:
            raise Unread(f"{token.text!r} after a value")
        glued = not text or word in "^/{}*" or text[-1] in "^/{*-"
        text += word if glued else f" {word}"
    return " ".join(text.split())


def _restated(quantity: Quantity, words: str) -> Reading:
    """`12 (twelve)` and `5 (cm)`: brackets that say the value again, or its unit."""
    value = exact(quantity.node)
    if value is not None and (value == number_word(words) or words == str(value)):
        return quantity
    unit = read_unit(words)
    if unit is None or quantity.unit is not None:
        raise Unread(f"the remark ({words})")
    return replace(quantity, unit=unit)


def _times(node: Node, scale: int) -> Node:
    return num(node.args[0] * scale) if node.op == "num" else Node("mul", (node, num(scale)))


def _is_whole(node: Node) -> bool:
    return node.op == "num" and node.args[0].denominator == 1


def _in_base(node: Node, base: int) -> Based:
    digits = str(node.args[0])
    try:
        return Based(digits, base, Fraction(int(digits, base)))
    except ValueError:
        raise Unread(f"{digits} is no number in base {base}") from None


def _product(first: Unit, second: Unit, words: str) -> Unit:
    """Dollars and `per hour`: the second is read as a divisor by its words."""
    kind = dict(first.kind)
    for dimension, power in second.kind:
        kind[dimension] = kind.get(dimension, 0) + power
    return Unit(first.size * second.size, tuple(sorted(pair for pair in kind.items() if pair[1])), words)
