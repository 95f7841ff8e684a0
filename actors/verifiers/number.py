"""The verifier `number`: a number near the reference, with its unit.

In: a response, a problem whose reference is a number. Out: a `Verdict`. Numbers are compared exactly.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from actors.answers.tokens import MOST_DIGITS
from actors.answers.units import Unit, read_unit
from actors.verifiers.stated import faulty_data, no_answer, stated_answer, without_marks
from orchestrator.config.verifiers import NumberSettings
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

_LARGEST_POWER = 400
"""The largest power of ten that is read."""
_CURRENCY = {"$": "dollar", "€": "euro", "£": "quid", "¥": "yen"}
_DIGITS = r"\d{1,3}(?:[ ,\u00a0\u202f]\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[+-])?\s*(?P<currency>[$€£¥])?\s*(?P<sign2>[+-])?\s*"
    rf"(?:(?P<whole>\d+)\s+(?=\d+\s*/))?(?P<digits>{_DIGITS})"
    rf"(?:\s*/\s*(?P<under>{_DIGITS}))?"
    r"(?:\s*(?:[eE]|[x×*·]\s*10\s*\^?)\s*(?P<power>[+-]?\s*\d{1,4}))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?[\d.]+)\s*\}|(\d))\s*(?:\{\s*([\d.]+)\s*\}|(\d))")
_TEX = re.compile(r"\\[,;:! ]|\\(?:mathrm|text|mbox)\s*(?=\{)|[{}]|\\left|\\right")
_PERCENT = re.compile(r"\s*(?:%|per\s?cent\b|pct\b)", re.IGNORECASE)


@dataclass(frozen=True)
class ReadNumber:
    """A number with its unit."""

    value: Fraction
    is_percent: bool
    unit: Unit | None
    """None where the text names none, or one that is not known."""
    rest: str
    """What follows the number."""


def read_number(text: str) -> ReadNumber | None:
    """The number that the whole text is: sign, digit groups, fraction, power of ten, currency and unit.

    None where there is none, or where other words stand around it.
    """
    plain = _plain(text)
    match = _NUMBER.match(plain)
    if match is None:
        return None
    value = _value(match)
    if value is None:
        return None
    rest = plain[match.end() :]
    percent = _PERCENT.match(rest)
    if percent:
        value, rest = value / 100, rest[percent.end() :]
    rest = rest.strip(" .")
    if _NUMBER.search(rest.replace("^2", "").replace("^3", "")):
        return None  # two numbers
    name = _CURRENCY.get(match["currency"] or "", rest)
    return ReadNumber(value, bool(percent), read_unit(name) if name else None, rest)


def last_number(text: str) -> str | None:
    """The text of the last number of a response."""
    found = [match for match in _NUMBER.finditer(_plain(text)) if _value(match) is not None]
    if not found:
        return None
    tail = _plain(text)[found[-1].end() :]
    percent = _PERCENT.match(tail)
    return found[-1][0].strip() + ("%" if percent else "")


def _plain(text: str) -> str:
    """A text without TeX around its numbers."""
    text = without_marks(text).replace("\\$", "$").replace("\\%", "%").replace("−", "-").replace("–", "-")
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text).replace("\\times", "×")
    text = text.replace("\\cdot", "·").replace("{,}", ",").replace("^{", "^")
    text = _TEX.sub(" ", text).strip().lstrip("= ≈~").strip()
    return re.sub(
        r"\s{3,}", "  ", text
    )  # the time to search a run of spaces grows with a power of its length


def _value(match: re.Match[str]) -> Fraction | None:
    def exact(digits: str) -> Fraction:
        return Fraction(re.sub(r"[ ,\u00a0\u202f]", "", digits).rstrip(".") or "0")

    if match.end() - match.start() > MOST_DIGITS:
        return None
    value = exact(match["digits"])
    if match["under"] is not None:
        under = exact(match["under"])
        if not under:
            return None
        value /= under
    if match["whole"] is not None:
        value += int(match["whole"])
    if match["power"] is not None:
        power = int(match["power"].replace(" ", ""))
        if abs(power) > _LARGEST_POWER:
            return None
        value *= Fraction(10) ** power
    signs = [match["sign"], match["sign2"]]
    return -value if signs.count("-") == 1 else value


class NumberVerifier:
    """The verifier `number`."""

    def __init__(self, settings: NumberSettings) -> None:
        self.settings = settings

    def __call__(self, response: str, problem: Problem) -> Verdict:
        gold = None if problem.reference is None else read_number(problem.reference)
        if gold is None:
            return faulty_data(problem, f"the reference {problem.reference!r} is not a number")
        answer = self._stated(response)
        if isinstance(answer, Verdict):
            return answer
        given = read_number(answer)
        if given is None:
            return Verdict(Status.WRONG, answer, f"{answer!r} is not one number")
        if (fault := self._unit_fault(gold, given)) is not None:
            return Verdict(Status.WRONG, answer, fault)
        allowed = max(Fraction(self.settings.tolerance) * abs(gold.value), Fraction(self.settings.absolute))
        candidates = [given.value * self._factor(gold, given)]
        if self.settings.bare_percent and gold.is_percent != given.is_percent:
            candidates.append(candidates[0] / 100 if gold.is_percent else candidates[0] * 100)
        gap = min(abs(value - gold.value) for value in candidates)
        detail = f"{_shown(candidates[0])} against {_shown(gold.value)}, allowed difference {_shown(allowed)}"
        return Verdict(Status.CORRECT if gap <= allowed else Status.WRONG, answer, detail)

    def answer(self, response: str) -> str | None:
        """The number that a response states, as text."""
        found = self._stated(response)
        return None if isinstance(found, Verdict) or read_number(found) is None else found

    def same(self, first: str, second: str) -> bool:
        """Whether two texts are one number: exact, so that votes pool transitively."""
        one, other = read_number(first), read_number(second)
        if one is None or other is None:
            return first.strip() == second.strip()
        if self.settings.unit == "ignored" or not (one.unit or other.unit):
            return one.value == other.value
        return (
            one.unit is not None
            and other.unit is not None
            and one.unit.kind == other.unit.kind
            and one.value * one.unit.size == other.value * other.unit.size
        )

    def _stated(self, response: str) -> str | Verdict:
        answer = stated_answer(response, self.settings.answer_pattern)
        if answer is None and self.settings.last_number:
            answer = last_number(response)
        return no_answer("the response states no number") if answer is None else answer

    def _unit_fault(self, gold: ReadNumber, given: ReadNumber) -> str | None:
        rule = self.settings.unit
        if rule == "ignored" or gold.unit is None:
            # What follows a reference's number may be a unit that is not in the table.
            if rule == "required" and gold.rest and gold.rest.casefold() != given.rest.casefold():
                return f"the unit is {given.rest or 'missing'!r}, not {gold.rest!r}"
            return None
        if given.unit is None:
            return f"the unit {gold.unit.name!r} is missing" if rule == "required" or given.rest else None
        if given.unit.kind != gold.unit.kind:
            return f"the unit {given.unit.name!r} is not one of {gold.unit.name!r}"
        return None

    def _factor(self, gold: ReadNumber, given: ReadNumber) -> Fraction:
        if self.settings.unit == "ignored" or gold.unit is None or given.unit is None:
            return Fraction(1)
        return given.unit.size / gold.unit.size


def _shown(value: Fraction) -> str:
    try:
        return f"{float(value):.10g}"
    except OverflowError:
        return "a number beyond 1e308"
