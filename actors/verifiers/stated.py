"""The answer that a response states, and the row's fields that verifiers read.

In: a response, a problem. Out: texts, or the verdict on a response without an answer.
"""

import re
from typing import Any

from actors.boxes import answer_to_check, find_boxes
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

_SENTENCE = re.compile(
    r"(?:\bfinal\s+answer\b|\b(?:correct\s+)?answer\b|\b(?:correct\s+)?(?:choice|option)\b)"
    r"\s*(?:is|:|=)\s*:?\s*(?P<answer>[^\n]+)",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(?P<answer>[^\n]+)", re.MULTILINE)


def stated_answer(response: str, pattern: str | None) -> str | Verdict | None:
    r"""The answer that a response states; a verdict where boxes state none; None without any statement.

    Args:
        pattern: A regular expression with one group, whose last match is the answer. Without it the only
            \boxed{} counts, else what follows the last `####` or "the answer is".
    """
    if pattern is not None:
        found = list(re.finditer(pattern, response))
        return (found[-1][1] or "").strip() or None if found else None
    if find_boxes(response).count:
        return answer_to_check(response)
    for rule in (_HASHES, _SENTENCE):
        if matches := list(rule.finditer(response)):
            return without_marks(matches[-1]["answer"]) or None
    return None


def without_marks(text: str) -> str:
    """A text without the Markdown and the full stop around it."""
    text = text.strip()
    while text and (text[0] in "*_`$ " or text[-1] in "*_`$ .!"):
        shorter = text.lstrip("*_`$ ").rstrip("*_`$ .!")
        if shorter == text:
            break
        text = shorter
    return text


def no_answer(detail: str = "the response states no answer") -> Verdict:
    """The verdict on a response without an answer."""
    return Verdict(Status.NO_ANSWER, None, detail)


def faulty_data(problem: Problem, detail: str) -> Verdict:
    """The verdict where the row, rather than the response, is at fault."""
    return Verdict(Status.ERROR, None, f"{problem.where}: {detail}")


def row_field(problem: Problem, name: str) -> Any:
    """A field of the row by its dotted name; None where there is none."""
    value: Any = problem.fields
    for part in name.split("."):
        if isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif hasattr(value, "get"):
            value = value.get(part)
        else:
            return None
    return value


def right_answers(problem: Problem, aliases_field: str | None) -> list[str]:
    """The reference, and the texts of the row's field of other right answers."""
    answers = [] if problem.reference is None else [problem.reference]
    aliases = None if aliases_field is None else row_field(problem, aliases_field)
    if isinstance(aliases, str):
        aliases = [aliases]
    return answers + [str(alias) for alias in aliases or []]
