"""The verifiers `text` and `token_f1`: an answer's words against the reference's.

In: a response, a problem with a reference, or with right answers in a field. Out: a `Verdict`.
"""

import re
import string
import unicodedata
from collections import Counter

from actors.verifiers.stated import faulty_data, right_answers, stated_answer, without_marks
from orchestrator.config.verifiers import TextSettings, TokenF1Settings
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”«»…–—")
_AT_ENDS = string.punctuation + string.whitespace + "‘’“”«»…"
_KEPT = "+-#%$€)]}"
"""Marks that carry a meaning at an end: C++, C#, 5%, f(x)."""


def normal_text(text: str, keep_case: bool = False) -> str:
    """A text without differences of Unicode form, case, spaces, quotes and punctuation at its ends."""
    text = unicodedata.normalize("NFKC", without_marks(text))
    text = " ".join(text.split())
    ends = "".join(mark for mark in _AT_ENDS if mark not in _KEPT)
    text = text.strip(ends) or text
    return text if keep_case else text.casefold()


def words_of(text: str) -> list[str]:
    """The words of a text as SQuAD counts them: lower case, without articles and punctuation."""
    lower = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", lower).split()


def _stated_text(response: str, pattern: str | None) -> str | Verdict:
    answer = stated_answer(response, pattern)
    if answer is None and pattern is None:
        answer = response.strip()
    return answer or Verdict(Status.NO_ANSWER, None, "the response states no answer")


def _to_compare(
    response: str, problem: Problem, settings: TextSettings | TokenF1Settings
) -> tuple[str, list[str]] | Verdict:
    """The answer that a response states and the right ones, or the verdict where one of them is missing."""
    right = right_answers(problem, settings.aliases_field)
    if not right:
        return faulty_data(problem, "there is no reference and no other right answer")
    answer = _stated_text(response, settings.answer_pattern)
    return answer if isinstance(answer, Verdict) else (answer, right)


class TextVerifier:
    """The verifier `text`."""

    def __init__(self, settings: TextSettings) -> None:
        self.settings = settings

    def __call__(self, response: str, problem: Problem) -> Verdict:
        texts = _to_compare(response, problem, self.settings)
        if isinstance(texts, Verdict):
            return texts
        answer, right = texts
        equal = any(self.same(answer, text) for text in right)
        return Verdict(Status.CORRECT if equal else Status.WRONG, answer, f"against {right[0]!r}")

    def answer(self, response: str) -> str | None:
        """The text that a response states."""
        found = _stated_text(response, self.settings.answer_pattern)
        return None if isinstance(found, Verdict) else found

    def same(self, first: str, second: str) -> bool:
        """Whether two texts are equal once normalised."""
        keep = self.settings.keep_case
        return normal_text(first, keep) == normal_text(second, keep)


class TokenF1Verifier:
    """The verifier `token_f1`."""

    def __init__(self, settings: TokenF1Settings) -> None:
        self.settings = settings

    def __call__(self, response: str, problem: Problem) -> Verdict:
        texts = _to_compare(response, problem, self.settings)
        if isinstance(texts, Verdict):
            return texts
        answer, right = texts
        f1, precision, recall, text = max((*_overlap(answer, text), text) for text in right)
        parts = {"precision": precision, "recall": recall}
        return Verdict(Status.WRONG, answer, f"F1 {f1:.3f} against {text!r}", reward=f1, parts=parts)


def _overlap(answer: str, reference: str) -> tuple[float, float, float]:
    """F1, precision and recall of the words."""
    given, right = words_of(answer), words_of(reference)
    if not given or not right:
        same = float(given == right)
        return same, same, same
    common = sum((Counter(given) & Counter(right)).values())
    precision, recall = common / len(given), common / len(right)
    return 2 * common / (len(given) + len(right)), precision, recall
