"""The paper's reward: the one boxed answer of a response against the reference, by math-verify."""

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

from orchestrator.messages.verdicts import Status, Verdict

DEFAULT_VERIFIER = "actors.verification:verify_math"
Verifier = Callable[[str, str], Verdict]
"""(response, reference) -> Verdict. It runs in a process of its own and may be killed at any point."""
# TeX allows space before the brace, and \{, \} and \\ are characters, not braces; a doubled backslash before `boxed` is
# a model's escaping, not a line break.
_BOX_TOKEN = re.compile(r"(?P<box>\\boxed\s*\{)|\\[{}]|\\\\(?!boxed)|(?P<open>\{)|(?P<close>\})")


def boxed_answers(text: str) -> list[str | None]:
    r"""The text inside every \boxed{...}, in the order in which they open; None for a box that is never closed.

    One pass, linear in the text. Braces nest, `\fbox{` is no box, and neither is `\boxed` without braces.
    """
    answers: list[str | None] = []
    open_groups: list[
        tuple[int, int] | None
    ] = []  # (index of its answer, start of its text) for a box, None for a brace
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


def only_answer(response: str) -> str | None:
    r"""The answer of a response that has exactly one \boxed{}, complete and not empty; None for any other response.

    Only such a response has a vote.
    """
    boxes = boxed_answers(response)
    return boxes[0] or None if len(boxes) == 1 else None


def verify_math(response: str, reference: str) -> Verdict:
    r"""The paper's reward: the only \boxed{} of the response against the reference, by math-verify.

    No complete box, or an empty one, is `no_answer`; more than one (an unclosed one counts) is `format`. A reference
    that math-verify cannot read is `error` unless the answer is literally the same text.
    """
    boxes = boxed_answers(response)
    answer = _last(boxes)
    if answer is None:
        return Verdict(Status.NO_ANSWER, None, r"no complete \boxed{}")
    if len(boxes) > 1:
        return Verdict(Status.FORMAT, answer, rf"{len(boxes)} times \boxed{{}} where one is asked for")
    if not answer:
        return Verdict(Status.NO_ANSWER, answer, r"the \boxed{} is empty")
    try:
        return _compare(answer, reference)
    except Exception as error:
        detail = f"math-verify failed on answer {answer!r}, reference {reference!r}: {type(error).__name__}: {error}"
        return Verdict(Status.ERROR, answer, detail)


def _last(boxes: list[str | None]) -> str | None:
    return next((box for box in reversed(boxes) if box is not None), None)


def _compare(answer: str, reference: str) -> Verdict:
    import math_verify  # 0.4 s, and only the processes that check need it

    # Its own timeouts are off below, of which it would warn: they use SIGALRM, which raises outside the main thread
    # and cannot interrupt work in C. The deadline is DeadlineExecutor's.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    gold, candidate = _parse(reference), _parse(answer)
    if not gold:
        return Verdict(
            Status.ERROR,
            answer,
            f"math-verify cannot read the reference answer {reference!r}: correct the data",
        )
    if math_verify.verify(gold, candidate, timeout_seconds=None, raise_on_error=True):
        return Verdict(Status.CORRECT, answer)
    if all(isinstance(reading, str) for reading in gold):  # no expression: only equal text could have told
        return Verdict(
            Status.ERROR,
            answer,
            f"math-verify cannot read the reference answer {reference!r} as mathematics: correct the data",
        )
    return Verdict(Status.WRONG, answer)


def equal_answers(first: str, second: str) -> bool:
    """Whether math-verify takes one of two answers for the other; it is not symmetric, so both ways are asked."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    one, other = _reading(first), _reading(second)
    return any(
        math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True)
        for gold, answer in ((one, other), (other, one))
    )


_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")


def _parse(text: str) -> list[Any]:
    r"""math-verify's readings: an expression, if it finds one, and the normalised text; [] for nothing at all.

    Inside \boxed{} it reads plain numbers, LaTeX with and without dollars, sets and intervals alike; outside, much of
    that is missed or misread ("\frac12" is nothing, "(1,2)" is nothing, "1,2,3" is 1.2).
    """
    from math_verify import parse

    if number := _SCIENTIFIC.fullmatch(
        text.strip()
    ):  # as JSON writes small numbers; LaTeX reads the e as Euler's
        text = rf"{number[1]}\times 10^{{{number[2]}}}"
    return parse(rf"\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)


_reading = functools.lru_cache(maxsize=1024)(_parse)
