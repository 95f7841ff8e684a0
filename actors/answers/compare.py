"""Whether two answers mean the same: `accepts` for a verdict, `same` for a vote, over one reading.

`same` is exact, and an equivalence: what is equal to one answer is equal to all that equal it. `accepts` also
takes an answer that says more or less than the reference about the unknown, the unit, the precision or the
base: `5` for `x = 5` and for `5 cm`, 1/3 for the reference `0.33`. Neither ever compares a part of a text.
"""

import re
from dataclasses import dataclass

from actors.answers.alternatives import other_readings
from actors.answers.forms import Digits, Reading, Void
from actors.answers.matching import match
from actors.answers.normalise import normal_form, text_key
from actors.answers.read import read_normalised

_INTEGER = re.compile(r"\s*(?:\+|(?P<sign>-?))0*(?P<digits>[1-9][0-9]*|0)\s*")
_LONGEST_SHOWN = 160
"""Characters of a reading in an explanation."""


@dataclass(frozen=True)
class AnswerComparison:
    """The outcome of a comparison, and how it came about."""

    equal: bool
    reference: Reading
    answer: Reading
    rule: str
    """By which rule the two are equal or not."""

    def __str__(self) -> str:
        readings = f"reference: {_brief(self.reference)}; answer: {_brief(self.answer)}"
        return f"{readings}; {'equal' if self.equal else 'not equal'}: {_brief(self.rule)}"


def accepts(reference: str, answer: str) -> AnswerComparison:
    """Whether the answer is right, given the reference answer.

    Where either was not wholly read, only an equal text is right.
    """
    if (integers := _integers(reference, answer)) is not None:
        equal = integers[0] == integers[1]
        rule = "the same integer" if equal else "different integers"
        return AnswerComparison(equal, Digits(reference.strip()), Digits(answer.strip()), rule)
    one, other = normal_form(reference), normal_form(answer)
    readings = read_normalised(one), read_normalised(other)
    if text_key(one) == text_key(other):
        return AnswerComparison(True, *readings, "the same text")
    if any(isinstance(reading, Void) for reading in readings):
        return AnswerComparison(False, *readings, "the texts differ, and not both were wholly read")
    equal, rule = match(*readings, lenient=True)
    if equal:
        return AnswerComparison(True, *readings, rule)
    for first, second, why in other_readings(reference, answer, *readings):
        if isinstance(first, Void) or isinstance(second, Void):
            continue
        again, other_rule = match(first, second, lenient=True)
        if again:
            return AnswerComparison(True, first, second, f"{other_rule} ({why})")
    return AnswerComparison(False, *readings, rule)


def same(first: str, second: str) -> bool:
    """Whether two answers to one problem are equal: exact, symmetric and transitive."""
    if (integers := _integers(first, second)) is not None:
        return integers[0] == integers[1]
    one, other = normal_form(first), normal_form(second)
    if text_key(one) == text_key(other):
        return True
    readings = read_normalised(one), read_normalised(other)
    if any(isinstance(reading, Void) for reading in readings):
        return False
    return match(*readings, lenient=False)[0]


def unread_part(answer: str) -> str | None:
    """None for an answer that is wholly read, else what of it is not."""
    reading = read_normalised(normal_form(answer))
    return reading.reason if isinstance(reading, Void) else None


def _integers(first: str, second: str) -> tuple[str, str] | None:
    """Two plain integers in their shortest form: most answers are such, and need no reading."""
    one, other = _INTEGER.fullmatch(first), _INTEGER.fullmatch(second)
    if one is None or other is None:
        return None
    shortest = [
        match["digits"] if match["digits"] == "0" else (match["sign"] or "") + match["digits"]
        for match in (one, other)
    ]
    return shortest[0], shortest[1]


def _brief(what: object) -> str:
    text = str(what)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
