"""Numbers as people write them: digit groups, repeating decimals, scientific notation. In and out: LaTeX."""

import re
from fractions import Fraction

_THIN = r"(?:,\\!|\\!,|\{,\}\\?!?|,\\,|\\,|\\!|_|\\ | |\\;|\\:)\s?"
_THIN_GROUPS = re.compile(
    r"(?<![\d.,_^])(?<![\d][ ,])"  # not within a longer number or list
    rf"(?P<number>\d{{1,3}}(?P<gap>{_THIN})\d{{3}}(?:(?P=gap)\d{{3}})*)"
    r"(?![\d_])(?!\s*[\d/])(?!,\d)"
)
_COMMA_GROUPS = re.compile(r"(?<![\d.,_^])[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?!,\s*\d)")


def word_set(text: str) -> frozenset[str]:
    """The words of a text, for tables of words."""
    return frozenset(text.split())


_GAP = re.compile(r"\D+")


def join_digit_groups(text: str) -> str:
    r"""`12,345`, `12{,}345`, `12\,345`, `12 345` and `12_345` as `12345`.

    Inside brackets a bare comma separates: `(312,123,231)` are three numbers.
    """
    if not any(sign in text for sign in ",_ \\"):
        return text
    text = _THIN_GROUPS.sub(lambda match: _GAP.sub("", match["number"]), text)
    text = re.sub(r"(?<=\d)\s*\{,\}\s*(?=\d{3}(?!\d))", "", text)
    parts, depth, start = [], 0, 0
    for bracket in re.finditer(r"[(\[]|[)\]]|\\langle|\\rangle|\\\{|\\\}", text):
        if depth == 0:
            parts.append(_join_commas(text[start : bracket.start()]))
        else:
            parts.append(text[start : bracket.start()])
        parts.append(bracket[0])
        start = bracket.end()
        depth = max(0, depth + (1 if bracket[0] in ("(", "[", r"\langle", r"\{") else -1))
    parts.append(_join_commas(text[start:]) if depth == 0 else text[start:])
    return "".join(parts)


def is_grouped(text: str) -> bool:
    """Whether commas group the digits of the whole text, which may also be a list without spaces."""
    return re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", text.strip()) is not None


def _join_commas(text: str) -> str:
    return _COMMA_GROUPS.sub(lambda match: match[0].replace(",", ""), text)


def repeating(whole: str, fixed: str, period: str) -> Fraction:
    """The value of `whole.fixed(period)`, whose period repeats without end."""
    scale = 10 ** len(fixed)
    start = Fraction(int((whole or "0") + fixed), scale)
    return start + Fraction(int(period), (10 ** len(period) - 1) * scale)


def seen_period(digits: str) -> tuple[str, str] | None:
    """The digits before a period and the period, where it is seen at least twice (three times one digit)."""
    for length in range(1, len(digits) // 2 + 1):
        times = 3 if length == 1 else 2
        for start in range(len(digits) - times * length + 1):
            tail = digits[start:]
            period = tail[:length]
            if period.strip("0") and (period * (len(tail) // length + 1)).startswith(tail):
                return digits[:start], period
    return None
