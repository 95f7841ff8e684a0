"""Checks the responses to one problem against its reference answer, each check under a hard deadline.

In: response texts and a reference. Out: a `Verdict` for each; a check that timed out or failed is never a
wrong answer. `VerificationWorker` is the verification pool's Ray actor. This module imports no Ray, because
the child process of every worker imports it.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from actors.boxes import boxed_answers, last_answer
from actors.deadline import CallFailed, ChildDied, DeadlineExceeded, DeadlineExecutor, load_function
from actors.math_check import verify_math as verify_math  # saved configurations name it here
from actors.pooling import EQUALITY, PLAIN_EQUALITY, AnswerComparer, AnswerPool
from orchestrator.errors import ConfigError
from orchestrator.messages.verdicts import Status, Verdict

Verifier = Callable[[str, str], Verdict]
"""(response, reference) -> Verdict. It runs in a child process, which may be killed at any point."""

DEFAULT_VERIFIER = "math"
PLAIN_VERIFIER = "actors.verification:verify_math"
BUILT_IN = {"math": "actors.answers.verdict:verify_answer", "math_verify_plain": PLAIN_VERIFIER}
"""The verifiers that have a name. They read only the boxes of a response."""


def import_path_of(verifier: str) -> str:
    """The import path of a verifier that is given by name or by import path."""
    return BUILT_IN.get(verifier, verifier)


def load_verifier(verifier: str) -> Verifier:
    """The verifier with a name of `BUILT_IN`, or at `package.module:function`.

    Raises:
        ConfigError: It cannot be imported; the message says which part of the path is wrong.
    """
    if ":" not in verifier and verifier not in BUILT_IN:
        raise ConfigError(
            f"no verifier is named '{verifier}': use {' or '.join(BUILT_IN)}, or package.module:function"
        )
    return load_function(import_path_of(verifier))


WARM_UP = (r"\boxed{\frac{\sqrt{4}}{4}}", r"\frac12")
"""A check that imports all that checks import."""


class VerificationWorker:
    """An actor of the verification pool: it runs one check at a time in one child process.

    Several threads may call it, so that with `max_concurrency=2` it answers `ping` during a check.

    Args:
        verifier: Name or import path of the check.
        timeout_s: Seconds that one check may take.
        cache_size: Verdicts that are kept, the least recently used ones dropped first.

    Raises:
        ConfigError: The verifier cannot be imported, or the child process did not start.
    """

    def __init__(
        self, verifier: str = DEFAULT_VERIFIER, timeout_s: float = 10.0, cache_size: int = 20_000
    ) -> None:
        path = import_path_of(verifier)
        self._executor = DeadlineExecutor(path, timeout_s, warm_up=WARM_UP)
        # A run that keeps the former verifier also keeps its votes.
        self._comparer = AnswerComparer(timeout_s, PLAIN_EQUALITY if path == PLAIN_VERIFIER else EQUALITY)
        # The built-in verifiers read only the boxes, so responses with the same boxes share a check. Another
        # verifier may read the whole response.
        self._key: Callable[[str], Any] = (
            (lambda text: tuple(boxed_answers(text))) if path in BUILT_IN.values() else str
        )
        self._cache: OrderedDict[tuple[str, Any], Verdict] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()

    def verify(self, texts: list[str], finished: list[bool], reference: str) -> list[Verdict]:
        """A verdict for each response to one problem, in order.

        A truncated response counts like any other when it holds one complete box, as in the paper's reward.
        Equal (reference, answer) pairs share one check. A timeout or an error may come from a busy machine,
        so the next call checks that answer again.

        Args:
            finished: Whether each response ended by itself; it only makes the detail of a missing answer
                clearer.
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
                verdicts_here[key] = verdict
                if verdict.status is Status.NO_ANSWER and not is_finished:
                    verdict = replace(verdict, detail=f"{verdict.detail}: the response was cut off")
                verdicts.append(replace(verdict, seconds=seconds))
            return verdicts

    def pool_answers(self, answers: list[str]) -> list[int]:
        """The class of each answer to one problem. Equal answers share a class; classes count by appearance.

        A comparison that times out or fails means "not equal" and is counted.
        """
        with self._lock:
            return AnswerPool(self._comparer).classes(answers)

    def pooling_stats(self) -> dict[str, int]:
        """Counts of `pool_answers`: `comparisons`, and those that ended in `timeout` or `error`."""
        return {name: self._comparer.counts[name] for name in ("comparisons", "timeout", "error")}

    def ping(self) -> bool:
        return True

    def close(self) -> None:
        """Kill the child processes."""
        self._executor.close()
        self._comparer.close()

    def _check(self, text: str, reference: str) -> Verdict:
        answer = last_answer(boxed_answers(text))
        try:
            verdict = self._executor.call(text, reference)
        except DeadlineExceeded as error:
            return Verdict(Status.TIMEOUT, answer, f"the check against {reference!r} {error}")
        except (ChildDied, CallFailed) as error:
            return Verdict(Status.ERROR, answer, f"the check against {reference!r} failed: {error}")
        if not isinstance(verdict, Verdict):
            return Verdict(
                Status.ERROR, answer, f"the verifier returned {type(verdict).__name__}, not a Verdict"
            )
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
