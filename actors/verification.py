"""Checks the answers of one problem's responses against its reference answer, each check under a deadline that holds.

In: response texts and a reference. Out: a `Verdict` each, in which a check that timed out or failed is never a wrong
answer. `VerificationWorker` is what the verification pool runs as a Ray actor; this module itself imports no Ray,
because every worker's child process imports it.
"""

import functools
import logging
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from actors.deadline import CallFailed, ChildDied, DeadlineExceeded, DeadlineExecutor, load_function

DEFAULT_VERIFIER = "actors.verification:verify_math"


class Status(StrEnum):
    """What came of a check. All but `correct` are worth 0; `timeout` and `error` say nothing about the answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    FORMAT = "format"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """One response's result. `answer` is the text inside its last complete box, `detail` says why it is not correct."""

    status: Status
    answer: str | None = None
    detail: str = ""
    seconds: float | None = field(default=None, compare=False)
    """What its check took, from being handed to the child process; None where it shares the verdict of another check."""

    @property
    def reward(self) -> float:
        return 1.0 if self.status is Status.CORRECT else 0.0


Verifier = Callable[[str, str], Verdict]
"""(response, reference) -> Verdict. It runs in a process of its own and may be killed at any point."""


def load_verifier(import_path: str) -> Verifier:
    """The verifier at `package.module:function`; raises ConfigError that names what cannot be found there."""
    return load_function(import_path)


# TeX allows space before the brace, and \{, \} and \\ are characters, not braces; a doubled backslash before `boxed` is
# a model's escaping, not a line break.
_BOX_TOKEN = re.compile(r"(?P<box>\\boxed\s*\{)|\\[{}]|\\\\(?!boxed)|(?P<open>\{)|(?P<close>\})")


def boxed_answers(text: str) -> list[str | None]:
    r"""The text inside every \boxed{...}, in the order in which they open; None for a box that is never closed.

    One pass, linear in the text. Braces nest, `\fbox{` is no box, and neither is `\boxed` without braces.
    """
    answers: list[str | None] = []
    open_groups: list[tuple[int, int] | None] = []  # (index of its answer, start of its text) for a box, None for a brace
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
        return Verdict(Status.ERROR, answer, f"math-verify cannot read the reference answer {reference!r}: correct the data")
    if math_verify.verify(gold, candidate, timeout_seconds=None, raise_on_error=True):
        return Verdict(Status.CORRECT, answer)
    if all(isinstance(reading, str) for reading in gold):  # no expression: only equal text could have told
        return Verdict(Status.ERROR, answer, f"math-verify cannot read the reference answer {reference!r} as mathematics: correct the data")
    return Verdict(Status.WRONG, answer)


def equal_answers(first: str, second: str) -> bool:
    """Whether math-verify takes one of two answers for the other; it is not symmetric, so both ways are asked."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    one, other = _reading(first), _reading(second)
    return any(math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True) for gold, answer in ((one, other), (other, one)))


_INTEGER = re.compile(r"([+-]?)0*([0-9]+)")

_PATIENCE = 2
"""Timed-out comparisons of one answer after which it is compared no more: one that hangs, hangs with every other."""

_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")


def _parse(text: str) -> list[Any]:
    r"""math-verify's readings: an expression, if it finds one, and the normalised text; [] for nothing at all.

    Inside \boxed{} it reads plain numbers, LaTeX with and without dollars, sets and intervals alike; outside, much of
    that is missed or misread ("\frac12" is nothing, "(1,2)" is nothing, "1,2,3" is 1.2).
    """
    from math_verify import parse

    if number := _SCIENTIFIC.fullmatch(text.strip()):  # as JSON writes small numbers; LaTeX reads the e as Euler's
        text = rf"{number[1]}\times 10^{{{number[2]}}}"
    return parse(rf"\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)


_reading = functools.lru_cache(maxsize=1024)(_parse)


class VerificationWorker:
    """The verification pool's actor (`ray.remote(VerificationWorker)`): one child process, one check at a time.

    Safe to call from several threads, so that with `max_concurrency=2` it answers `ping` during a check.
    """

    def __init__(self, verifier: str = DEFAULT_VERIFIER, timeout_s: float = 10.0, cache_size: int = 20_000):
        """Starts the child and waits for its imports; raises ConfigError when the verifier cannot be imported."""
        self._executor = DeadlineExecutor(verifier, timeout_s, warm_up=(r"\boxed{\frac12}", "0.5"))
        self._timeout_s = timeout_s
        self._comparer: DeadlineExecutor | None = None  # a second child, only where answers are pooled
        # verify_math reads nothing but the boxes, so responses that box the same share a check; another verifier may
        # read everything.
        self._key: Callable[[str], Any] = (lambda text: tuple(boxed_answers(text))) if verifier == DEFAULT_VERIFIER else str
        self._cache: OrderedDict[tuple[str, Any], Verdict] = OrderedDict()
        self._cache_size = cache_size
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def verify(self, texts: list[str], finished: list[bool], reference: str) -> list[Verdict]:
        """A verdict for each response to one problem, in order.

        A response that was cut off counts like any other when it holds one complete box, as in the paper's reward;
        `finished` only lets the detail say why there is no answer. Equal (reference, answer) pairs are checked once;
        timeouts and errors, which may be the machine's doing, are checked anew in the next call.
        """
        with self._lock:
            verdicts_here: dict[Any, Verdict] = {}
            verdicts = []
            for text, is_finished in zip(texts, finished, strict=True):
                key = (reference, self._key(text))
                verdict = verdicts_here.get(key) or self._cached(key)
                seconds = None
                if verdict is None:
                    started = time.perf_counter()
                    verdict = self._check(text, reference)
                    seconds = time.perf_counter() - started
                    self._remember(key, verdict)
                else:
                    self._counts["cache_hits"] += 1
                verdicts_here[key] = verdict
                if verdict.status is Status.NO_ANSWER and not is_finished:
                    verdict = replace(verdict, detail=f"{verdict.detail}: the response was cut off")
                self._counts[verdict.status] += 1
                verdicts.append(replace(verdict, seconds=seconds))
            return verdicts

    def pool_answers(self, answers: list[str]) -> list[int]:
        """The class of each answer to one problem: equal answers share one. Classes count from 0 in the order in which they appear.

        Answers are compared with the first, in sorted order, of each class found so far, so that classes depend neither on the order of
        the samples nor on equality being transitive. A comparison that times out or fails means "not equal" and is counted.
        """
        with self._lock:
            classes: dict[str, int] = {}
            firsts: list[str] = []
            timeouts: Counter[str] = Counter()
            for answer in sorted(set(answers), key=lambda answer: (len(answer), answer)):
                found = next((number for number, first in enumerate(firsts) if self._equal(first, answer, timeouts)), None)
                if found is None:
                    found = len(firsts)
                    firsts.append(answer)
                classes[answer] = found
            order = {number: position for position, number in enumerate(dict.fromkeys(classes[answer] for answer in answers))}
            return [order[classes[answer]] for answer in answers]

    def pooling_stats(self) -> dict[str, int]:
        """Counts of `pool_answers` since the start: `comparisons` run, and those that had a `timeout` or an `error`."""
        return {name: self._counts[f"pooling_{name}"] for name in ("comparisons", "timeout", "error")}

    def stats(self) -> dict[str, int]:
        """Counts since the start: responses by status, `checks` run, `cache_hits`, and `restarts` of the child."""
        counts = {str(name): self._counts[name] for name in (*Status, "checks", "cache_hits")}
        return counts | {"restarts": self._executor.restarts}

    def ping(self) -> bool:
        return True

    def close(self) -> None:
        self._executor.close()
        if self._comparer is not None:
            self._comparer.close()

    def _equal(self, first: str, second: str, timeouts: Counter[str]) -> bool:
        """Whether two answers that are not the same text are equal; `timeouts` counts those of each answer."""
        one, other = _INTEGER.fullmatch(first), _INTEGER.fullmatch(second)
        if one and other:  # most answers, and no need of math-verify
            return one[2] == other[2] and (one[2] == "0" or (one[1] == "-") == (other[1] == "-"))
        if max(timeouts[first], timeouts[second]) >= _PATIENCE:
            return False
        self._comparer = self._comparer or DeadlineExecutor(f"{__name__}:equal_answers", self._timeout_s, warm_up=(r"\frac12", "0.5"))
        self._counts["pooling_comparisons"] += 1
        try:
            return self._comparer.call(first, second)
        except DeadlineExceeded:
            self._counts["pooling_timeout"] += 1
            timeouts.update((first, second))
        except (ChildDied, CallFailed):
            self._counts["pooling_error"] += 1
        return False

    def _check(self, text: str, reference: str) -> Verdict:
        self._counts["checks"] += 1
        answer = _last(boxed_answers(text))
        try:
            verdict = self._executor.call(text, reference)
        except DeadlineExceeded as error:
            return Verdict(Status.TIMEOUT, answer, f"the check against {reference!r} {error}")
        except (ChildDied, CallFailed) as error:
            return Verdict(Status.ERROR, answer, f"the check against {reference!r} failed: {error}")
        if not isinstance(verdict, Verdict):
            return Verdict(Status.ERROR, answer, f"the verifier returned {type(verdict).__name__}, not a Verdict")
        return verdict

    def _cached(self, key: tuple[str, Any]) -> Verdict | None:
        if key in self._cache:
            self._cache.move_to_end(key)
        return self._cache.get(key)

    def _remember(self, key: tuple[str, Any], verdict: Verdict) -> None:
        if verdict.status in (Status.TIMEOUT, Status.ERROR):
            return
        self._cache[key] = verdict
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
