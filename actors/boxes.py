r"""The answers of a response: what stands inside \boxed{...}."""

import re

from orchestrator.messages.verdicts import Status, Verdict

# TeX allows space before the brace. \{, \} and \\ are characters, not braces. A doubled backslash before
# `boxed` is a model's escaping, not a line break.
_BOX_TOKEN = re.compile(r"(?P<box>\\boxed\s*\{)|\\[{}]|\\\\(?!boxed)|(?P<open>\{)|(?P<close>\})")


def boxed_answers(text: str) -> list[str | None]:
    r"""The text inside every \boxed{...}, in the order in which they open; None for a box without an end.

    One pass, linear in the text. Braces nest. Neither `\fbox{` nor `\boxed` without braces is a box.
    """
    answers: list[str | None] = []
    # For a box, the index of its answer and the start of its text; for another brace, None.
    open_groups: list[tuple[int, int] | None] = []
    for token in _BOX_TOKEN.finditer(text):
        if token["box"]:
            open_groups.append((len(answers), token.end()))
            answers.append(None)
        elif token["open"]:
            open_groups.append(None)
        elif token["close"] and open_groups:
            group = open_groups.pop()
            if group is not None:
                index, start = group
                answers[index] = text[start : token.start()].strip()
    return answers


def last_answer(boxes: list[str | None]) -> str | None:
    """The text of the last complete box of `boxed_answers`; None without one."""
    return next((box for box in reversed(boxes) if box is not None), None)


def only_answer(response: str) -> str | None:
    r"""The answer of a response with exactly one \boxed{}, complete and not empty; None without a vote."""
    boxes = boxed_answers(response)
    return boxes[0] or None if len(boxes) == 1 else None


def answer_to_check(response: str) -> str | Verdict:
    r"""The answer of a response with exactly one \boxed{}, or the verdict on a response without.

    No complete box, or an empty one, is `no_answer`. More than one box is `format`; one without an end
    counts.
    """
    boxes = boxed_answers(response)
    answer = last_answer(boxes)
    if answer is None:
        return Verdict(Status.NO_ANSWER, None, r"no complete \boxed{}")
    if len(boxes) > 1:
        return Verdict(Status.FORMAT, answer, rf"{len(boxes)} times \boxed{{}} where one is asked for")
    if not answer:
        return Verdict(Status.NO_ANSWER, answer, r"the \boxed{} is empty")
    return answer
