"""Brackets and separators among tokens."""

from collections.abc import Callable, Collection, Sequence

from actors.answers.forms import Reading
from actors.answers.tokens import MOST_LEVELS, Token, Unread

Tokens = Sequence[Token]
ReadItem = Callable[[Tokens], Reading]

_OPENING = frozenset(["(", "[", "{", "\\{", "langle", "lfloor", "lceil", "lvert", "begin"])
_CLOSING = frozenset([")", "]", "}", "\\}", "rangle", "rfloor", "rceil", "rvert", "end"])


def split_at(tokens: Tokens, is_separator: Callable[[Token], bool]) -> tuple[list[Tokens], list[Token]]:
    """The parts between separators outside all brackets, and the separators.

    Raises:
        Unread: The brackets do not match.
    """
    parts: list[list[Token]] = [[]]
    found: list[Token] = []
    depth = 0
    for token in tokens:
        depth += _step(token)
        if depth < 0:
            raise Unread(f"a closing {token.text!r} without an opening one")
        if depth > MOST_LEVELS:
            raise Unread(f"more than {MOST_LEVELS} levels")
        if depth == 0 and is_separator(token):
            found.append(token)
            parts.append([])
        else:
            parts[-1].append(token)
    if depth:
        raise Unread("a bracket without its closing one")
    return list(parts), found


def at_top(tokens: Tokens, texts: Collection[str]) -> list[int]:
    """The places of signs and commands with these texts, outside all brackets."""
    places, depth = [], 0
    for place, token in enumerate(tokens):
        depth += _step(token)
        if depth == 0 and token.kind in ("sign", "command") and token.text in texts:
            places.append(place)
    return places


def one_group(tokens: Tokens, openings: Collection[str]) -> bool:
    """Whether the first token opens a bracket that the last one closes."""
    if len(tokens) < 2 or tokens[0].kind not in ("sign", "command") or tokens[0].text not in openings:
        return False
    depth = 0
    for token in tokens[:-1]:
        depth += _step(token)
        if depth == 0:
            return False
    return depth == 1 and _step(tokens[-1]) == -1


def is_comma(token: Token) -> bool:
    """Whether the token is a comma or a semicolon."""
    return token.kind == "sign" and token.text in (",", ";")


def _step(token: Token) -> int:
    if token.kind not in ("sign", "command"):
        return 0
    return 1 if token.text in _OPENING else -1 if token.text in _CLOSING else 0
