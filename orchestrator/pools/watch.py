"""Decides which workers hang, from what they have done and how long that took before. Pure: no Ray.

In: what each busy worker works on, and its `Progress`. Out: the workers that have done nothing for longer
than their deadline. Only time in which the driver itself ran counts, so that nothing hangs on a machine that
was stopped as a whole.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.messages.progress import Progress

PATIENCE = 20.0
"""A worker may take so many times the longest time that a piece of the same work has taken."""
MEASURED = 3
"""Pieces of work after which their times say something."""
MOST_PASSED_S = 10.0
"""Most of the time between two looks that counts. A driver that was stopped, or busy, saw nothing."""

BusyWith = tuple[str, Hashable]
"""The kind of work, and what tells one call of it from the next."""


@dataclass(frozen=True)
class Hang:
    """A worker without progress."""

    worker: int
    work: str
    seconds: float
    deadline_s: float
    silent: bool
    """Its process tells nothing any more, so it is stopped; other workers may wait for it."""
    progress: Progress


@dataclass
class _Seen:
    call: BusyWith
    progress: Progress
    waited_s: float = 0.0
    silent_s: float = 0.0


class Watch:
    """The progress of a pool's workers.

    Args:
        deadline_s: Least time without progress after which a worker hangs.
        first_deadline_s: The same while fewer than `MEASURED` pieces of such work are measured.
        stacks: Folder for the stacks of workers that hang.
        together: Whether the workers wait for one another. Where one of them hangs, `look` returns all that
            have done nothing for half of their deadline.
        clock: In seconds.
    """

    def __init__(
        self,
        deadline_s: float = 120.0,
        first_deadline_s: float = 1800.0,
        stacks: Path | None = None,
        together: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stacks = stacks
        self._together = together
        self._deadline_s = deadline_s
        self._first_deadline_s = first_deadline_s
        self._clock = clock
        self._looked = clock()
        self._seen: dict[int, _Seen] = {}
        self._times: dict[str, list[float]] = {}
        """By kind of work: the longest time of a piece, and how many were measured."""

    def deadline_s(self, work: str) -> float:
        """How long a worker may take for a piece of this work."""
        longest, count = self._times.get(work, (0.0, 0))
        return self._first_deadline_s if count < MEASURED else max(self._deadline_s, PATIENCE * longest)

    def look(self, busy: Mapping[int, BusyWith], told: Mapping[int, Progress]) -> list[Hang]:
        """Compare with the last look. Returns the workers that hang.

        Args:
            busy: What each worker works on; those without work are left out.
            told: The newest progress of each worker that has told any. No other one is judged.
        """
        now = self._clock()
        passed, self._looked = min(now - self._looked, MOST_PASSED_S), now
        for worker, seen in list(self._seen.items()):
            if busy.get(worker) != seen.call:
                self.measure(seen.call[0], seen.waited_s + passed)
                del self._seen[worker]
        late = []
        for worker, call in busy.items():
            if (progress := told.get(worker)) is None:
                continue
            seen = self._seen.setdefault(worker, _Seen(call, progress, -passed, -passed))
            seen.waited_s += passed
            seen.silent_s = seen.silent_s + passed if progress.beat == seen.progress.beat else 0.0
            if progress.count != seen.progress.count:
                pieces = max(1, progress.count - seen.progress.count)
                self.measure(call[0], seen.waited_s / pieces)
                seen.waited_s = 0.0
            seen.progress = progress
            deadline_s = self.deadline_s(call[0])
            if seen.waited_s > deadline_s / 2:
                silent = seen.silent_s > deadline_s / 4
                late.append(Hang(worker, call[0], seen.waited_s, deadline_s, silent, progress))
        hangs = [hang for hang in late if hang.seconds > hang.deadline_s]
        found = late if hangs and self._together else hangs
        for hang in found:
            del self._seen[hang.worker]  # what a hang took is no measure of the work
        return found

    def measure(self, work: str, seconds: float) -> None:
        """A piece of this work has taken so long."""
        longest, count = self._times.get(work, (0.0, 0))
        self._times[work] = [max(longest, seconds), count + 1]


def culprits(hangs: Sequence[Hang]) -> list[Hang]:
    """Of workers that wait for one another, those that the others wait for."""
    if silent := [hang for hang in hangs if hang.silent]:
        return silent
    least = min((hang.progress.count for hang in hangs), default=0)
    return [hang for hang in hangs if hang.progress.count == least]
