"""Which answers to one problem are equal: `same`, in a child process that a deadline can kill.

In: the texts of answers. Out: a class for each, by one rule for evaluations, training and the service.
Imports no Ray.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from actors.deadline import CallFailed, ChildDied, DeadlineExceeded, DeadlineExecutor, MemoryExceeded
from actors.progress import advance
from orchestrator.algorithm.voting import answer_classes

EQUALITY = "actors.answers.compare:same"
"""The function that decides whether two answers are equal."""
PLAIN_EQUALITY = "actors.math_check:equal_answers"
"""The one that belongs to the verifier `math_verify_plain`."""

_INTEGER = re.compile(r"([+-]?)0*([0-9]+)")

_PATIENCE = 2
"""Comparisons of an answer that may break a limit. What hangs twice hangs with every other answer."""


class AnswerComparer:
    """Compares two answers in a child process, started by the first comparison. Several threads may call it.

    Args:
        timeout_s: Seconds that a comparison may take.
        equality: Import path of the function that compares.
        first_arguments: Arguments of that function before the two answers.
        start: Starts the child process. After a failure, such as a machine too busy to start it in time, the
            next comparison tries again.
        memory_mib: MiB that a comparison may take; without a limit when None.

    Attributes:
        counts: `comparisons` run, and those that ended in `timeout`, `memory` or `error`.
        numbers: Whether answers are mathematics, so that integers need no child process.
    """

    def __init__(
        self,
        timeout_s: float = 10.0,
        equality: str = EQUALITY,
        start: Callable[[], DeadlineExecutor] | None = None,
        first_arguments: tuple[str, ...] = (),
        memory_mib: int | None = None,
    ) -> None:
        self.numbers = equality in (EQUALITY, PLAIN_EQUALITY)
        self._first_arguments = first_arguments
        self.counts: Counter[str] = Counter()
        self._start = start or partial(_start, equality, timeout_s, first_arguments, memory_mib)
        self._child: DeadlineExecutor | None = None
        self._lock = threading.Lock()

    def equal(self, first: str, second: str) -> bool:
        """Whether the two answers are equal.

        Raises:
            DeadlineExceeded: The comparison took longer than `timeout_s`.
            MemoryExceeded: It took more memory than `memory_mib`.
            ChildDied: The child process died during the comparison.
            CallFailed: The comparison raised.
            ConfigError: The child process did not start.
        """
        with self._lock:
            self._child = child = self._child or self._start()
        self.counts["comparisons"] += 1
        try:
            return bool(child.call(*self._first_arguments, first, second))
        except DeadlineExceeded:
            self.counts["timeout"] += 1
            raise
        except MemoryExceeded:
            self.counts["memory"] += 1
            raise
        except (ChildDied, CallFailed):
            self.counts["error"] += 1
            raise
        finally:
            advance("a comparison of answers")

    def close(self) -> None:
        """Kill the child process."""
        with self._lock:
            if self._child is not None:
                self._child.close()


class PoolingAbandoned(Exception):
    """`AnswerPool.abandon` was called while the answers were compared."""


class AnswerPool:
    """The answers to one problem; equal ones share a class.

    A pool remembers its comparisons, so that only new pairs are compared when answers are added.
    """

    def __init__(self, comparer: AnswerComparer) -> None:
        self.comparer = comparer
        self._equal: dict[tuple[str, str], bool] = {}
        self._hung: Counter[str] = Counter()
        self._abandoned = False

    def classes(self, answers: Sequence[str]) -> list[int]:
        """The class of each answer, as `answer_classes` numbers them.

        A comparison that times out or fails means "not equal".

        Raises:
            ConfigError: The comparer's child process did not start.
            PoolingAbandoned: Another thread called `abandon`.
        """
        return answer_classes(answers, self._compare)

    def abandon(self) -> None:
        """End a call of `classes` in another thread before its next comparison."""
        self._abandoned = True

    def _compare(self, first: str, second: str) -> bool:
        if self._abandoned:
            raise PoolingAbandoned
        pair = (first, second)
        if pair not in self._equal:
            self._equal[pair] = self._ask(pair)
        return self._equal[pair]

    def _ask(self, pair: tuple[str, str]) -> bool:
        first, second = pair
        one, other = _INTEGER.fullmatch(first), _INTEGER.fullmatch(second)
        if self.comparer.numbers and one and other:  # Most answers are integers, which need no child process.
            return one[2] == other[2] and (one[2] == "0" or (one[1] == "-") == (other[1] == "-"))
        if max(self._hung[first], self._hung[second]) >= _PATIENCE:
            return False
        try:
            return self.comparer.equal(first, second)
        except (DeadlineExceeded, MemoryExceeded):
            self._hung.update(pair)
        except (ChildDied, CallFailed):
            pass
        return False


def _start(
    equality: str, timeout_s: float, first_arguments: tuple[str, ...], memory_mib: int | None
) -> DeadlineExecutor:
    warm_up = (*first_arguments, r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")
    return DeadlineExecutor(equality, timeout_s, warm_up, memory_mib)
