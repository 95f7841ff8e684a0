"""The verifier `choice`: one letter of several, or the words of that option.

In: a response, a problem whose reference is a letter, an index or an option's text. Out: a `Verdict`.
"""

import re
from collections.abc import Mapping, Sequence

from actors.verifiers.stated import faulty_data, no_answer, row_field, stated_answer, without_marks
from actors.verifiers.text import normal_text
from orchestrator.config.verifiers import ChoiceSettings
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")


class ChoiceVerifier:
    """The verifier `choice`."""

    def __init__(self, settings: ChoiceSettings) -> None:
        self.settings = settings
        letter = f"[{settings.letters}{settings.letters.lower()}]"
        # `B`, `(B)`, `B.`, `B)`, `option B`, `B: words`; a lower-case letter needs brackets or an end.
        self._marked = re.compile(
            rf"(?:option|choice|answer)?\s*[(\[{{]\s*({letter})\s*[)\]}}]", re.IGNORECASE
        )
        self._alone = re.compile(rf"(?:option|choice)?\s*({letter})\s*[.):]?", re.IGNORECASE)
        self._leading = re.compile(rf"(?:(?:option|choice)\s+)?([{settings.letters}])\s*[.):,-]\s+\S")

    def __call__(self, response: str, problem: Problem) -> Verdict:
        options = self._options(problem)
        gold = self._gold(problem, options)
        if gold is None:
            return faulty_data(problem, f"the reference {problem.reference!r} names none of the options")
        stated = self._stated(response)
        if isinstance(stated, Verdict):
            return stated
        letters = self._letters(stated, options)
        if not letters:
            return Verdict(Status.NO_ANSWER, None, f"{stated!r} names none of the options")
        if len(letters) > 1:
            return Verdict(Status.FORMAT, None, f"{stated!r} names {' and '.join(sorted(letters))}")
        (letter,) = letters
        return Verdict(
            Status.CORRECT if letter == gold else Status.WRONG, letter, f"{letter}, reference {gold}"
        )

    def answer(self, response: str) -> str | None:
        """The letter that a response names."""
        stated = self._stated(response)
        letters = set() if isinstance(stated, Verdict) else self._letters(stated, {})
        return letters.pop() if len(letters) == 1 else None

    def same(self, first: str, second: str) -> bool:
        """Whether two answers are one letter."""
        return first.strip().upper() == second.strip().upper()

    def _stated(self, response: str) -> str | Verdict:
        answer = stated_answer(response, self.settings.answer_pattern)
        if answer is not None:
            return answer
        lines = [line.strip() for line in response.splitlines() if line.strip()]
        return lines[-1] if lines else no_answer("the response is empty")

    def _options(self, problem: Problem) -> dict[str, str]:
        """The options' texts by letter."""
        name = self.settings.options_field
        found = None if name is None else row_field(problem, name)
        if isinstance(found, Mapping):
            if isinstance(found.get("text"), Sequence) and isinstance(found.get("label"), Sequence):
                pairs = zip(found["label"], found["text"], strict=False)
                return {str(label).upper(): str(text) for label, text in pairs}
            return {str(key).strip().upper(): str(text) for key, text in found.items()}
        if isinstance(found, Sequence) and not isinstance(found, str):
            return dict(zip(self.settings.letters, map(str, found), strict=False))
        return {}

    def _gold(self, problem: Problem, options: dict[str, str]) -> str | None:
        reference = "" if problem.reference is None else problem.reference.strip()
        if len(reference) == 1 and reference.upper() in self.settings.letters:
            return reference.upper()
        by_words = [letter for letter, text in options.items() if normal_text(text) == normal_text(reference)]
        if len(by_words) == 1:
            return by_words[0]
        if reference.isascii() and reference.isdigit():
            index = int(reference) - self.settings.first_index
            return self.settings.letters[index] if 0 <= index < len(self.settings.letters) else None
        letters = self._letters(reference, {})
        return letters.pop() if len(letters) == 1 else None

    def _letters(self, stated: str, options: dict[str, str]) -> set[str]:
        """The letters that a statement names."""
        stated = without_marks(_TEXT_COMMAND.sub(r"\1", stated))
        by_words = {letter for letter, text in options.items() if normal_text(text) == normal_text(stated)}
        if alone := self._alone.fullmatch(stated):
            return {alone[1].upper()}
        if by_words:
            return by_words
        if marked := self._marked.findall(stated):
            return {letter.upper() for letter in marked}
        if leading := self._leading.match(stated):
            return {leading[1]}
        # `B or C`, `B and C`: several capitals that stand alone.
        return set(re.findall(rf"(?<![\w'])([{self.settings.letters}])(?![\w'])", stated)) - _words_of(stated)


def _words_of(stated: str) -> set[str]:
    """Capitals that are words of a sentence: `A dog`, `I think`."""
    return set(re.findall(r"(?<![\w'])([AI])(?=\s+(?!or\b|and\b)[a-z])", stated))
