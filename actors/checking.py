"""The child processes of a verification worker: one for each verifier in use.

In: a verifier's settings, responses, a problem. Out: what each check returned or raised, and its seconds.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from actors.budget import SHARE_VARIABLE, BudgetShare
from actors.concurrent import ConcurrentExecutor
from actors.deadline import CallFailed, ChildDied, DeadlineExceeded, DeadlineExecutor, MemoryExceeded
from actors.progress import advance
from actors.verifiers.loading import loaded_verifier
from orchestrator.config.verifiers import (
    JudgeSettings,
    VerifierSettings,
    parts_of,
    settings_of_text,
    settings_text,
)
from orchestrator.messages.problems import Problem

RUN_CHECK = "actors.verifiers.loading:run_check"
WARM_UP = Problem.from_text("warm-up", "", r"\frac{\sqrt{2}}{2}")
WARM_UP_RESPONSE = r"\boxed{\frac{1}{\sqrt{2}}}"
"""A check that imports all that checks import."""

OWN_IN_FLIGHT = 64
"""Checks of a user's `async` verifier at a time in one worker."""


def refuse_unusable(texts: Iterable[str]) -> None:
    """Refuse verifiers that cannot be used: before anything starts.

    Args:
        texts: Canonical texts of verifiers.

    Raises:
        ConfigError: One cannot be imported, does not say what its second argument is, refuses its settings,
            or does not work on this machine.
    """
    for text in dict.fromkeys(texts):
        for part in parts_of(settings_of_text(text)):
            loaded_verifier(settings_text(part))


def runs_many(text: str) -> bool:
    """Whether a verifier is `async`: then one worker has many checks at a time."""
    return any(loaded_verifier(settings_text(part)).is_async for part in parts_of(settings_of_text(text)))


class CheckPools:
    """Child processes by verifier; the first check of a verifier starts its child. Threads may share it.

    Args:
        timeout_s: Seconds that a check may take, where its settings do not say.
        share: Of a judge's budget; None makes one of its own.
        memory_mib: MiB that a check may take; without a limit when None. The checks of an `async` verifier
            share one process, and have none.
    """

    def __init__(
        self, timeout_s: float, share: BudgetShare | None = None, memory_mib: int | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._memory_mib = memory_mib
        self._share = share
        self._children: dict[str, DeadlineExecutor | ConcurrentExecutor] = {}
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def start(self, settings: VerifierSettings) -> DeadlineExecutor | ConcurrentExecutor:
        """The child of a verifier, started unless it runs. One serves all settings of a name, but of a judge.

        Raises:
            ConfigError: The verifier cannot be used here, or the child did not start.
        """
        with self._lock:
            key = _key_of(settings)
            child = self._children.get(key)
            if child is None:
                text = settings_text(settings)
                warm_up = (text, WARM_UP_RESPONSE, WARM_UP)
                if loaded_verifier(text).is_async:
                    in_flight = settings.in_flight if isinstance(settings, JudgeSettings) else OWN_IN_FLIGHT
                    variables = {} if self._share is None else {SHARE_VARIABLE: self._share.text()}
                    child = ConcurrentExecutor(RUN_CHECK, in_flight, warm_up, variables)
                else:
                    child = DeadlineExecutor(RUN_CHECK, self._timeout_s, warm_up, self._memory_mib)
                self._children[key] = child
                self._turns[key] = threading.Lock()
            return child

    def check(
        self, settings: VerifierSettings, responses: Sequence[str], problem: Problem
    ) -> list[tuple[Any, float]]:
        """What each check returned, or the error that it ended with, and its seconds.

        A check past its deadline is a `TimeoutError`, one past its memory limit a `MemoryError`.
        """
        child, text = self.start(settings), settings_text(settings)
        timeout_s = settings.timeout_s or self._timeout_s
        if isinstance(child, ConcurrentExecutor):
            return _all_at_once(child, [(text, response, problem) for response in responses], timeout_s)
        checks = _Timed(f"a check of problem {problem.id}")
        with self._turns[_key_of(settings)]:  # a group after another, so that `seconds` is the check's own
            for response in responses:  # what goes on aside gives up the turn
                checks.began()
                checks.follow(child.begin(text, response, problem, timeout_s=timeout_s))
        return checks.ended()

    def close(self) -> None:
        """Kill the children."""
        with self._lock:
            for child in self._children.values():
                child.close()


def _key_of(settings: VerifierSettings) -> str:
    """Each judge has a child of its own, with its number of requests in flight; rows cannot add judges."""
    return settings_text(settings) if isinstance(settings, JudgeSettings) else settings.name


def _all_at_once(
    child: ConcurrentExecutor, calls: Sequence[tuple[Any, ...]], timeout_s: float
) -> list[tuple[Any, float]]:
    checks = _Timed("a check")
    checks.began()
    for arguments in calls:
        checks.follow(child.submit(*arguments, timeout_s=timeout_s))
    return checks.ended()


class _Timed:
    """The outcomes of checks and their seconds; each end is told as progress."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._started = 0.0
        self._checks: list[tuple[Future[Any], float]] = []
        self._ends: dict[int, float] = {}

    def began(self) -> None:
        """The checks that are followed next begin now."""
        self._started = time.perf_counter()

    def follow(self, check: "Future[Any]") -> None:
        number = len(self._checks)
        self._checks.append((check, self._started))
        check.add_done_callback(partial(self._note_end, number))

    def ended(self) -> list[tuple[Any, float]]:
        """Wait for all: the outcome of each, and its seconds."""
        outcomes = [(_outcome(check.result), started) for check, started in self._checks]
        now = time.perf_counter()  # for one whose callback has not run yet
        return [
            (outcome, self._ends.get(number, now) - started)
            for number, (outcome, started) in enumerate(outcomes)
        ]

    def _note_end(self, number: int, _: "Future[Any]") -> None:
        self._ends[number] = time.perf_counter()
        advance(self._doing)


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except DeadlineExceeded as error:
        return TimeoutError(str(error))
    except MemoryExceeded as error:
        return MemoryError(str(error))
    except (ChildDied, CallFailed) as error:
        return error
