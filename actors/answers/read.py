"""Reads an answer: text in, one of the forms of `forms` out, or `Void` with what could not be read."""

import re
from fractions import Fraction
from functools import lru_cache

from actors.answers.forms import (
    Based,
    ChoiceLetter,
    Part,
    Quantity,
    Reading,
    Region,
    Several,
    TimeOfDay,
    Void,
    Words,
)
from actors.answers.nodes import Node, num, sym
from actors.answers.normalise import FUNCTION_NAMES, LONGEST, LONGEST_REMEMBERED, normalise
from actors.answers.numerals import word_set
from actors.answers.regions import LINE
from actors.answers.statements import read_statements
from actors.answers.tokens import MOST_DIGITS, Unread, tokenise
from actors.answers.units import Unit, read_unit
from actors.answers.words import (
    base_word,
    counted,
    date,
    fraction_word,
    is_label,
    is_word,
    meaning,
    number_word,
)

DEGREE = Unit(Fraction(1), (("angle", 1),), "°")
_SMALL_WORDS = word_set("an no is of in to on at by or if it so up as be we do a and the")

_ZERO, _INFINITY = num(0), Node("const", ("oo",))
_HALVES = {
    "all real numbers": Region((LINE,)),
    "all positive real numbers": Region((Part(_ZERO, False, _INFINITY, False),)),
    "all nonnegative real numbers": Region((Part(_ZERO, True, _INFINITY, False),)),
    "all negative real numbers": Region((Part(Node("neg", (_INFINITY,)), False, _ZERO, False),)),
}

_PLAIN = re.compile(r"(?P<sign>[+-]?) ?(?P<digits>\d+|\d+\.\d+|\.\d+)")
_CLOCK = re.compile(r"(\d{1,2})(?:[:.](\d{2}))? ?(?:\\text ?\{ ?)?([aApP])\.? ?[mM]\.? ?\}?")
_ARC = re.compile(
    r"(-?) ?(?:(\d+(?:\.\d+)?) ?\^\\circ)? ?(?:(\d+(?:\.\d+)?) ?')? ?(?:(\d+(?:\.\d+)?) ?(?:''|\"))?"
)
_BASED = re.compile(
    r"(?P<sign>-?) ?\(?(?P<digits>\d[0-9A-Z]*)\)? ?(?:_ ?(?P<low>\{.*\}|\w+|\\text ?\{.*\})"
    r"|(?:\\text ?\{)? ?\(? ?(?:in )?(?P<word>base[ -]?\w+) ?\)? ?\}?)"
)
_CHOICE = re.compile(
    r"(?:(?:\\text ?)?\{ ?)?(?:(?:option|choice) )?"
    r"(?:\((?P<round>[A-Z])\)|(?P<point>[A-H])[.):]|(?P<bare>[A-Z])(?=\}))\.? ?\}?"
    r"(?P<rest>(?! ?[-+*/^=<>(_!,']|\\c|\\t[io]|\\i|\\s)(?: .*)?)",
    re.IGNORECASE,
)
_UNWRAPPED = re.compile(r"\\text ?\{([^{}]*\d[^{}]*)\}")
_COMPOUND = re.compile(r"(\d+) ?([A-Za-z]+),?(?: and)? (\d+(?:\.\d+)?) ?([A-Za-z]+)")
_ALL_BUT = re.compile(r"(?:all )?(?:real numbers|reals)(?: x)? (?:except|other than)(?: for)? (?P<rest>.+)")
_NAMED_CHOICE = re.compile(r"(?:\\text ?\{ ?)?(?:[Oo]ption|[Cc]hoice|[Aa]nswer) \(?(?P<letter>[A-H])\)? ?\}?")
_WORDS = re.compile(r"[A-Za-z][A-Za-z '.,;:!?()&/-]*")


def read_normalised(text: str) -> Reading:
    """The reading of a text that `normalise` has made."""
    if not text:
        return Void("an empty text")
    if len(text) > LONGEST:
        return Void(f"a text of more than {LONGEST} characters")
    return _remembered_reading(text) if len(text) <= LONGEST_REMEMBERED else _read(text)


def _read(text: str) -> Reading:
    if (inner := _UNWRAPPED.fullmatch(text)) and _words(text) is None and _choice(text) is None:
        return read_normalised(normalise(inner[1]))
    try:
        for reader in (_plain_number, _words, _clock, _arc, _compound, _based, _choice):
            reading = reader(text)
            if reading is not None:
                return reading
        return read_statements(tokenise(_rewritten(text)))
    except Unread as unread:
        return Void(str(unread))
    except RecursionError:
        return Void("too many levels")


_remembered_reading = lru_cache(maxsize=8192)(_read)


def decimal_comma(text: str) -> Reading | None:
    """The reading of `4,75` with a decimal comma."""
    match = re.fullmatch(r"([+-]?\d+),(\d+)", text)
    return Quantity(num(Fraction(f"{match[1]}.{match[2]}")), places=len(match[2])) if match else None


def unit_of_letters(text: str) -> Reading | None:
    """The reading of `8 m/s` with units, where the letters may be variables."""
    text = re.sub(r"\\frac ?\{([A-Za-z]+)\} ?\{([A-Za-z]+)\}", r"\1/\2", text)
    match = re.fullmatch(r"(.*?[\d)}]) ?([A-Za-z][A-Za-z/^0-9{} ]*)", text)
    unit = read_unit(match[2]) if match else None
    number = read_normalised(match[1]) if match and unit else None
    if isinstance(number, Quantity) and number.unit is None:
        return Quantity(number.node, unit, places=number.places)
    return None


def euler_product(text: str) -> Reading | None:
    """The reading of `2e-3` as twice e, less 3."""
    if re.search(r"\de[-+]?\d", text):
        return read_normalised(re.sub(r"(?<=\d)e(?=[-+]?\d)", " e ", text))
    return None


def _plain_number(text: str) -> Reading | None:
    match = _PLAIN.fullmatch(text)
    if match is None or len(text) > MOST_DIGITS:
        return None
    digits = match["digits"]
    value = Fraction(digits) if "." in digits else Fraction(int(digits))
    return Quantity(num(-value if match["sign"] == "-" else value), places=len(digits.partition(".")[2]))


def _clock(text: str) -> Reading | None:
    match = _CLOCK.fullmatch(text)
    if match:
        hour, minute = int(match[1]), int(match[2] or 0)
        if not 1 <= hour <= 12 or minute > 59:
            raise Unread(f"the time {text!r}")
        return TimeOfDay((hour % 12 + 12 * (match[3] in "pP")) * 60 + minute, True)
    return None


def _arc(text: str) -> Reading | None:
    """Degrees, minutes and seconds of arc."""
    match = _ARC.fullmatch(text)
    if match is None or not (match[3] or match[4]):
        return None
    degrees, minutes, seconds = (Fraction(match[group] or 0) for group in (2, 3, 4))
    value = degrees + minutes / 60 + seconds / 3600
    return Quantity(num(-value if match[1] else value), DEGREE)


def _compound(text: str) -> Reading | None:
    """`4 hours and 30 minutes`, in the first unit."""
    flat = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", text)
    match = _COMPOUND.fullmatch(re.sub(r"\s+", " ", flat).strip())
    if match is None:
        return None
    first, second = read_unit(match[2]), read_unit(match[4])
    if first is None or second is None or first.kind != second.kind or first.size <= second.size:
        return None
    return Quantity(num(Fraction(match[1]) + Fraction(match[3]) * second.size / first.size), first)


def _based(text: str) -> Reading | None:
    match = _BASED.fullmatch(text)
    named = re.sub(r"\\text|[{}()]", "", match["low"] or match["word"]) if match else ""
    base = base_word(named)
    if match is None or base is None or not 2 <= base <= 36:
        return None
    try:
        value = int(match["digits"], base)
    except ValueError:
        raise Unread(f"{match['digits']} is no number in base {base}") from None
    digits = match["digits"].lstrip("0") or "0"
    return Based(match["sign"] + digits, base, Fraction(-value if match["sign"] else value))


def _choice(text: str) -> Reading | None:
    if named := _NAMED_CHOICE.fullmatch(text):
        return ChoiceLetter(named["letter"])
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    letter, rest = match["round"] or match["point"] or match["bare"], match["rest"].strip()
    if letter.islower() and not rest:
        return ChoiceLetter(letter)
    if rest and (letter.islower() or (not match["round"] and not match["point"])):
        return None
    if not rest:
        return ChoiceLetter(letter)
    reading = read_normalised(rest)
    if isinstance(reading, Void) or (isinstance(reading, Words) and counted(reading.text) is None):
        return None
    return ChoiceLetter(letter, reading)


def _words(text: str) -> Reading | None:
    """Words alone, bare or in `\\text{...}`."""
    flat = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", text)
    is_marked = flat != text
    flat = re.sub(r"\s+", " ", flat).strip()
    if re.match(r"(?:triangle|angle) [A-Z]{3}$|(?i:option|choice|answer) [A-H]$", flat):
        return None
    if (named := date(flat)) is not None:
        return Words(named)
    if not _WORDS.fullmatch(flat):
        return _phrase(flat) if is_marked else None
    runs = re.findall(r"[A-Za-z]+", flat)
    if is_marked and len(runs) == 1 and len(runs[0]) == 1:
        return None
    if not is_marked and not _are_words(runs, flat):
        return None
    if _CLOCK.fullmatch(flat) or (_CHOICE.fullmatch(flat) and len(runs[0]) == 1):
        return None
    return _meant(flat, runs)


def _phrase(flat: str) -> Reading | None:
    """Words with numbers among them, of which no part is a number with its unit."""
    if match := _ALL_BUT.fullmatch(flat):
        return read_normalised(rf"\mathbb{{R}} \setminus \{{{match['rest']}\}}")
    if (
        re.fullmatch(r"[A-Za-z][A-Za-z0-9 '.,:;!?()&-]*", flat)
        and len(flat.split()) > 2
        and is_word(flat.split()[0])
    ):
        return Words(meaning(flat))
    return None


def _are_words(runs: list[str], flat: str) -> bool:
    if any(
        run in FUNCTION_NAMES or run in ("pi", "sqrt", "infinity", "inf", "mod", "theta", "oo")
        for run in runs
    ):
        return flat.lower() in ("negative infinity", "minus infinity")
    if len(runs) == 1:
        return is_word(runs[0]) or (is_label(runs[0]) and flat == runs[0])
    singles = [run for run in runs if len(run) == 1 and run not in "aAI"]
    known = [run for run in runs if is_word(run) or run.lower() in _SMALL_WORDS or is_label(run)]
    return not singles and len(known) == len(runs) - sum(run in "aAI" for run in runs) + sum(
        run in "aA" for run in runs
    )


def _meant(flat: str, runs: list[str]) -> Reading | None:
    words = meaning(flat)
    if (value := number_word(words)) is not None:
        return Quantity(num(value), places=0)
    if words == "empty set":
        return Region(())
    if (fraction := fraction_word(words)) is not None:
        return Quantity(num(fraction))
    if words in _HALVES:
        return _HALVES[words]
    if words in ("infinity", "positive infinity", "plus infinity"):
        return Quantity(Node("const", ("oo",)))
    if words == "minus infinity":
        return Quantity(Node("neg", (Node("const", ("oo",)),)))
    if (
        re.search(r",|\band\b|\bor\b|;", flat)
        and len(items := re.split(r"\s*(?:,|;|\band\b|\bor\b)\s*", flat)) > 1
    ):
        items = [item for item in items if item]
        if all(re.fullmatch(r"[A-Za-z]+", item) for item in items):
            return Several("list", tuple(_single(item) for item in items))
    return Words(words)


def _single(item: str) -> Reading:
    if len(item) == 1:
        return Quantity(sym(item))
    return _meant(item, [item]) or Words(meaning(item))


def _rewritten(text: str) -> str:
    """Small rewritings before the grammar: x for times, temperatures, words between numbers."""
    text = re.sub(r"(?<=\d) ?[xX] ?(?=10 ?\^)", r"\\times ", text)
    text = re.sub(
        r"(?:\^\\circ|\bdegrees?) ?(?:\\text ?\{ ?)?(Celsius|Fahrenheit)\b ?\}?", r"\\text{\1}", text
    )
    text = re.sub(r"\^\\circ ?(?:\\text ?\{ ?)?(C|F)(?:elsius|ahrenheit)?\b ?\}?$", r"\\text{deg\1}", text)
    text = re.sub(r"(?<=[\d)}]) (?:\\text ?\{ ?to ?\}|to) (?=[\d({\\])", " : ", text)
    divisible = r"(?:\\text ?\{ ?)?\b(?:is )?(?:a )?(?:divisible by|multiple of) ?\}?"
    text = re.sub(divisible, r"\\divisible ", text)
    text = re.sub(r"(?<=[\])}]) ?U ?(?=[\[({\\])", r"\\cup ", text)
    text = re.sub(r"(?:\\text ?\{ ?)?(?<!\\)\b(triangle|angle)\b ?\}?", r"\\\1 ", text)
    text = re.sub(r"\\text ?\{ ?divides ?\}", r"\\mid ", text)
    return re.sub(r",? ?(?:\\text ?\{,? ?respectively ?\}|respectively)$", "", text)
