"""The paper's reward: the one boxed answer of a response against the reference, by math-verify."""

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

from orchestrator.messages.verdicts import Status, Verdict

DEFAULT_VERIFIER = "actors.verification:verify_math"
Verifier = Callable[[str, str], Verdict]
"""(response, reference) -> Verdict. It runs in a child process, which may be killed at any point."""

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


def verify_math(response: str, reference: str) -> Verdict:
    r"""Check the only \boxed{} of a response against the reference, by math-verify: the paper's reward.

    No complete box, or an empty one, is `no_answer`. More than one box is `format`; one without an end
    counts. A reference that math-verify cannot read is `error`, unless the answer is the same text.
    """
    boxes = boxed_answers(response)
    answer = last_answer(boxes)
    if answer is None:
        return Verdict(Status.NO_ANSWER, None, r"no complete \boxed{}")
    if len(boxes) > 1:
        return Verdict(Status.FORMAT, answer, rf"{len(boxes)} times \boxed{{}} where one is asked for")
    if not answer:
        return Verdict(Status.NO_ANSWER, answer, r"the \boxed{} is empty")
    try:
        return _compare(answer, reference)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        detail = f"math-verify failed on answer {answer!r}, reference {reference!r}: {failure}"
        return Verdict(Status.ERROR, answer, detail)


def equal_answers(first: str, second: str) -> bool:
    """Whether math-verify accepts one answer for the other. It is not symmetric, so both orders count."""
    import math_verify

    _silence_timeout_warning()
    one, other = _reading(first), _reading(second)
    return any(
        math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True)
        for gold, answer in ((one, other), (other, one))
    )


def _compare(answer: str, reference: str) -> Verdict:
    import math_verify  # takes 0.4 s, and only the processes that check need it

    _silence_timeout_warning()
    gold, candidate = _parse(reference), _parse(answer)
    unreadable = f"math-verify cannot read the reference answer {reference!r}"
    if not gold:
        return Verdict(Status.ERROR, answer, f"{unreadable}: correct the data")
    if math_verify.verify(gold, candidate, timeout_seconds=None, raise_on_error=True):
        return Verdict(Status.CORRECT, answer)
    if all(isinstance(reading, str) for reading in gold):
        # Without an expression only an equal text can be correct, so another text is not certain to be wrong.
        return Verdict(Status.ERROR, answer, f"{unreadable} as mathematics: correct the data")
    return Verdict(Status.WRONG, answer)


def _silence_timeout_warning() -> None:
    """math-verify warns when its own timeouts are off, as they are here.

    They use SIGALRM, which raises outside the main thread and cannot interrupt work in C. `DeadlineExecutor`
    has the deadline.
    """
    logging.getLogger("math_verify").setLevel(logging.ERROR)


_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")


def _parse(text: str) -> list[Any]:
    r"""math-verify's readings: an expression, if it finds one, and the normalised text; [] without any.

    Inside \boxed{} it reads plain numbers, LaTeX with and without dollars, sets and intervals alike. Outside,
    it misses or misreads many of them ("\frac12" and "(1,2)" give nothing, "1,2,3" gives 1.2).
    """
    from math_verify import parse

    if number := _SCIENTIFIC.fullmatch(text.strip()):
        # JSON writes small numbers so; LaTeX reads the e as Euler's number.
        text = rf"{number[1]}\times 10^{{{number[2]}}}"
    return parse(rf"\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)


_reading = functools.lru_cache(maxsize=1024)(_parse)
