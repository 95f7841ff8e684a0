"""The verifier `math_verify_plain`: the one boxed answer of a response against the reference, by math-verify
alone.

It reads some answers in part only: see docs/verification.md. The default is the verifier `math`, in
`actors.answers`. Runs that were started with this one keep it.
"""

import functools
import logging
import re
from typing import Any

from actors.boxes import answer_to_check
from actors.math_verify_source import import_math_verify
from orchestrator.messages.verdicts import Status, Verdict


def verify_math(response: str, reference: str) -> Verdict:
    r"""Check the only \boxed{} of a response against the reference, by math-verify: the paper's reward.

    `answer_to_check` judges the boxes. A reference that math-verify cannot read is `error`, unless the answer
    is the same text.
    """
    answer = answer_to_check(response)
    if isinstance(answer, Verdict):
        return answer
    try:
        return _compare(answer, reference)
    except MemoryError:
        raise  # it has a status of its own
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        detail = f"math-verify failed on answer {answer!r}, reference {reference!r}: {failure}"
        return Verdict(Status.ERROR, answer, detail)


def equal_answers(first: str, second: str) -> bool:
    """Whether math-verify accepts one answer for the other. It is not symmetric, so both orders count."""
    math_verify = import_math_verify()
    _silence_timeout_warning()
    one, other = _reading(first), _reading(second)
    return any(
        math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True)
        for gold, answer in ((one, other), (other, one))
    )


def _compare(answer: str, reference: str) -> Verdict:
    math_verify = import_math_verify()  # takes 0.4 s, and only the processes that check need it
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
    if number := _SCIENTIFIC.fullmatch(text.strip()):
        # JSON writes small numbers so; LaTeX reads the e as Euler's number.
        text = rf"{number[1]}\times 10^{{{number[2]}}}"
    return import_math_verify().parse(rf"\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)


_reading = functools.lru_cache(maxsize=1024)(_parse)
