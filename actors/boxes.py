r"""The answers of a response: what stands inside \boxed{...}."""

import re
from dataclasses import dataclass

from orchestrator.messages.verdicts import Status, Verdict

# TeX allows space before the brace. \{, \} and \\ are characters, not braces. A doubled backslash before
# `boxed` is a model's escaping, not a line break.
_BOX_TOKEN = re.compile(r"(?P<box>\\boxed\s*\{)|\\[{}]|\\\\(?!boxed)|(?P<open>\{)|(?P<close>\})")


@dataclass(frozen=True)
class Boxes:
    """What matters of a response's boxes."""

    count: int
    """How many open."""
    last: str | None
    """The text of the last one to open of those that are complete; None without one."""


def find_boxes(text: str) -> Boxes:
    r"""Every \boxed{...} of a text.

    One pass, linear in the text: of boxes within boxes, one text is kept. Braces nest. Neither `\fbox{` nor
    `\boxed` without braces is a box.
    """
    count, last, span = 0, -1, (0, 0)
    # For a box, its number and the start of its text; for another brace, None.
    open_groups: list[tuple[int, int] | None] = []
    for token in _BOX_TOKEN.finditer(text):
        if token["box"]:
            open_groups.append((count, token.end()))
            count += 1
        elif token["open"]:
            open_groups.append(None)
        elif token["close"] and open_groups:
            group = open_groups.pop()
            if group is not None and group[0] > last:
                last, span = group[0], (group[1], token.start())
    return Boxes(count, None if last < 0 else text[slice(*span)].strip())


def only_answer(response: str) -> str | None:
    r"""The answer of a response with exactly one \boxed{}, complete and not empty; None without a vote."""
    boxes = find_boxes(response)
    return boxes.last or None if boxes.count == 1 else None


def answer_to_check(response: str) -> str | Verdict:
    r"""The answer of a response with exactly one \boxed{}, or the verdict on a response without.

    No complete box, or an empty one, is `no_answer`. More than one box is `format`; one without an end
    counts.
    """
    boxes = find_boxes(response)
    if boxes.last is None:
        return Verdict(Status.NO_ANSWER, None, r"no complete \boxed{}")
    if boxes.count > 1:
        return Verdict(Status.FORMAT, boxes.last, rf"{boxes.count} times \boxed{{}} where one is asked for")
    if not boxes.last:
        return Verdict(Status.NO_ANSWER, boxes.last, r"the \boxed{} is empty")
    return boxes.last
