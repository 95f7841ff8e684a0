"""Cuts a normalised text into tokens: numbers, letters, commands, words and signs."""

import re
from dataclasses import dataclass
from fractions import Fraction

from actors.answers.normalise import FUNCTION_NAMES
from actors.answers.numerals import repeating, seen_period
from actors.answers.units import is_unit
from actors.answers.words import is_word

MOST_TOKENS = 1_500
MOST_LEVELS = 40
"""Levels of brackets, fractions and powers within one another."""
MOST_DIGITS = 4_000
"""Digits of one number, and its exponent at the most; Python refuses to read integers of more than 4,300."""


class Unread(Exception):
    """The text is not wholly read; the message says what was not."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token; `space` says whether a space stands before it."""

    kind: str
    """`number`, `letter`, `command`, `environment`, `text` (words) or `sign`."""
    text: str
    space: bool = False
    value: Fraction | None = None
    """Of a number."""
    places: int | None = None
    """Digits after the point of a plain decimal; 0 for an integer."""


_NUMBER = re.compile(
    r"(?P<sci>(?:\d+(?:\.\d*)?|\.\d+)[eE][+-]?\d+(?![\d.^]))"
    r"|(?P<whole>\d*)\.(?P<fixed>\d*)(?:\\overline\s*\{\s*(?P<bar>\d+)\s*\}|\((?P<round>\d+)\)"
    r"|\\dot\s*\{?(?P<first>\d)\}?(?P<inner>\d*)(?:\\dot\s*\{?(?P<last>\d)\}?)?)"
    r"|(?P<open>\d*\.\d+)\s*\\ldots(?![A-Za-z])"
    r"|(?P<plain>\d+\.\d+|\.\d+|\d+(?:\.(?=\s*(?:[,;)\]}\\]|$)))?)"
)
_TOKEN = re.compile(
    r"\\text\s*\{(?P<text>(?:[^{}]|\{[^{}]*\})*)\}"
    r"|\\begin\s*\{(?P<begin>[a-z]+\*?)\}|\\end\s*\{(?P<end>[a-z]+\*?)\}"
    r"|\\mathbb\s*\{?\s*(?P<set>[A-Z])\s*\}?|\\(?P<command>[A-Za-z]+)|\\(?P<escaped>[{}\\|])"
    r"|(?P<letters>[A-Za-z]+)|(?P<sign>[-+*/^_=<>(){}\[\]|,;:!%'&#])"
)
_PLAIN_NAMES = {"infinity": "infty", "inf": "infty", "pi": "pi", "sqrt": "sqrt", "cbrt": "cbrt", "mod": "mod",
                "theta": "theta", "alpha": "alpha", "beta": "beta", "cup": "cup", "abs": "abs",
                "floor": "floor", "ceil": "ceil", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
                "or": "or", "and": "and", "binom": "binom", "U": "U", "emptyset": "emptyset"}  # fmt: skip

_BEFORE_A_NAME = ("(", ",", "=", "+", "-", "<", ">", "le", "ge", "in")
_JOINING = ("or", "and", "to", "per", "if", "for", "when", "where", "otherwise", "with", "of", "is")


def tokenise(text: str) -> list[Token]:
    """The tokens of a normalised text.

    Raises:
        Unread: A character belongs to no token, or the text is too long.
    """
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        space = position > 0 and text[position - 1] == " "
        if (text[position].isdigit() or text[position] == ".") and (match := _NUMBER.match(text, position)):
            if match["plain"] is not None and tokens and tokens[-1].text in ("frac", "binom"):
                match = re.compile(r"(?P<plain>\d)").match(text, position) or match
            tokens.append(_number(match, space))
        elif match := _TOKEN.match(text, position):
            tokens += _named(match, space, tokens[-1] if tokens else None)
        else:
            raise Unread(f"the sign {text[position]!r}")
        if len(tokens) > MOST_TOKENS:
            raise Unread(f"more than {MOST_TOKENS} tokens")
        position = match.end()
    return tokens


def _number(match: re.Match[str], space: bool) -> Token:
    text = match[0]
    groups = match.groupdict()
    if len(text) > MOST_DIGITS:
        raise Unread(f"a number of more than {MOST_DIGITS} digits")
    if groups.get("plain"):
        plain = groups["plain"].rstrip(".")
        value = Fraction(plain) if "." in plain else Fraction(int(plain))
        return Token("number", plain, space, value, len(plain.partition(".")[2]))
    if groups.get("sci"):
        mantissa, _, exponent = text.lower().partition("e")
        if abs(int(exponent)) > MOST_DIGITS:
            raise Unread(f"the exponent {exponent}")
        return Token("number", text, space, Fraction(mantissa) * Fraction(10) ** int(exponent))
    if groups.get("open"):
        whole, _, digits = groups["open"].partition(".")
        found = seen_period(digits)
        if found is None:
            raise Unread(f"a decimal without a last digit, {text!r}")
        return Token("number", text, space, repeating(whole, *found))
    period = groups["bar"] or groups["round"]
    if period is None:
        period = (groups["first"] or "") + (groups["inner"] + groups["last"] if groups["last"] else "")
        if groups["inner"] and not groups["last"]:
            raise Unread(f"a dot over one digit of several, {text!r}")
    return Token("number", text, space, repeating(groups["whole"], groups["fixed"], period))


def _named(match: re.Match[str], space: bool, before: Token | None) -> list[Token]:
    if match["text"] is not None:
        words = match["text"].strip()
        if len(words) == 1 and words.isalpha() and (before is None or before.text in _BEFORE_A_NAME):
            return [Token("letter", words, space)]
        return [Token("text", words, space)] if words else []
    if match["begin"] or match["end"]:
        return [
            Token("command", "begin" if match["begin"] else "end", space),
            Token("environment", match["begin"] or match["end"]),
        ]
    if match["set"]:
        return [Token("command", f"mathbb {match['set']}", space)]
    if match["command"]:
        return [Token("command", match["command"], space)]
    if match["escaped"]:
        return [Token("sign", f"\\{match['escaped']}", space)]
    if match["sign"]:
        return [Token("sign", match["sign"], space)]
    return _letters(match["letters"], space, before)


def _letters(run: str, space: bool, before: Token | None) -> list[Token]:
    """A run of letters is a unit after a number, a name, a word, or one variable for each letter."""
    if len(run) == 1:
        return [Token("letter", run, space)]
    name = run if run in _PLAIN_NAMES else run.lower()
    measured = before is not None and (before.kind in ("number", "text") or before.text in (")", "}"))
    if name in _JOINING or (measured and is_unit(run)):
        return [Token("text", run, space)]
    if name in _PLAIN_NAMES:
        return [Token("command", _PLAIN_NAMES[name], space)]
    if run in FUNCTION_NAMES:
        return [Token("command", run, space)]
    if split := re.fullmatch(r"(sin|cos|tan|cot|ln|log|exp)([a-z])", run):
        return [Token("command", split[1], space), Token("letter", split[2])]
    if split := re.fullmatch(r"([a-z])?(pi|sqrt)([a-z])?", run):
        parts = [
            Token("letter", split[1]) if split[1] else None,
            Token("command", split[2]),
            Token("letter", split[3]) if split[3] else None,
        ]
        return [part for part in parts if part]
    if is_word(run):
        return [Token("text", run, space)]
    return [Token("letter", letter, space and index == 0) for index, letter in enumerate(run)]
