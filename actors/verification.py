"""Checks the answers of one problem's responses against its reference answer, each check under a deadline that holds.

In: response texts and a reference. Out: a `Verdict` each, in which a check that timed out or failed is never a wrong
answer. `VerificationWorker` is what the verification pool runs as a Ray actor; this module itself imports no Ray,
because every worker's child process imports it.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from actors.deadline import CallFailed, ChildDied, DeadlineExceeded, DeadlineExecutor, load_function
from actors.math_check import DEFAULT_VERIFIER, Verifier, _last, boxed_answers
from actors.math_check import verify_math as verify_math  # saved configurations name it here
from actors.pooling import AnswerComparer, AnswerPool
from orchestrator.messages.verdicts import Status, Verdict


def load_verifier(import_path: str) -> Verifier:
    """The verifier at `package.module:function`; raises ConfigError that names what cannot be found there."""
    return load_function(import_path)


class VerificationWorker:
    """The verification pool's actor (`ray.remote(VerificationWorker)`): one child process, one check at a time.

    Safe to call from several threads, so that with `max_concurrency=2` it answers `ping` during a check.
    """

    def __init__(self, verifier: str = DEFAULT_VERIFIER, timeout_s: float = 10.0, cache_size: int = 20_000):
        """Starts the child and waits for its imports; raises ConfigError when the verifier cannot be imported."""
        self._executor = DeadlineExecutor(verifier, timeout_s, warm_up=(r"\boxed{\frac12}", "0.5"))
        self._comparer = AnswerComparer(timeout_s)
        # verify_math reads nothing but the boxes, so responses that box the same share a check; another verifier may
        # read everything.
        self._key: Callable[[str], Any] = (
            (lambda text: tuple(boxed_answers(text))) if verifier == DEFAULT_VERIFIER else str
        )
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
        """The class of each answer to one problem: equal answers share one, numbered from 0 in order of appearance.

        A comparison that times out or fails means "not equal" and is counted.
        """
        with self._lock:
            return AnswerPool(self._comparer).classes(answers)

    def pooling_stats(self) -> dict[str, int]:
        """Counts of `pool_answers` since the start: `comparisons` run, and those that had a `timeout` or an `error`."""
        return {name: self._comparer.counts[name] for name in ("comparisons", "timeout", "error")}

    def stats(self) -> dict[str, int]:
        """Counts since the start: responses by status, `checks` run, `cache_hits`, and `restarts` of the child."""
        counts = {str(name): self._counts[name] for name in (*Status, "checks", "cache_hits")}
        return counts | {"restarts": self._executor.restarts}

    def ping(self) -> bool:
        return True

    def close(self) -> None:
        self._executor.close()
        self._comparer.close()

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
