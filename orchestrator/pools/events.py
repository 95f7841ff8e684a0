"""The driver waits here: pools run their tasks, and the ranks their calls, while it waits for any of them.

In: pools with tasks, and refs of other calls. Out: values, by each task's callback or from `finished`. Every
wait runs all tasks of its pools, so batches that are generated ahead advance while the driver waits for an
evaluation, for verdicts or for the ranks.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from ray import ObjectRef
from ray.exceptions import RayError

from orchestrator.cluster.waits import fetched
from orchestrator.pools.pool import CHECK_EVERY_S, Pool
from orchestrator.pools.task import Task

_arrival = threading.Condition()
"""Told whenever a ref of any inbox is there."""


class _Inbox:
    """Refs that are waited for, and those of them that are there.

    Ray tells of each ref once. To ask for the first of all refs, as `ray.wait` does, costs as much as there
    are refs: with hundreds of engines, more than the driver has.
    """

    def __init__(self) -> None:
        self.watched: set[ObjectRef] = set()
        self.arrived: deque[ObjectRef] = deque()
        self.checked = time.monotonic()
        """When `check_alive` was called last."""

    def watch(self, refs: Iterable[ObjectRef]) -> None:
        """Wait for these, too; those that are waited for already stay as they are."""
        for ref in refs:
            if ref not in self.watched:
                self.watched.add(ref)
                ref.future().add_done_callback(partial(self._arrive, ref))

    def take(self) -> ObjectRef:
        """The ref that came first."""
        ref = self.arrived.popleft()
        self.watched.discard(ref)
        return ref

    def _arrive(self, ref: ObjectRef, value: Any) -> None:
        with _arrival:  # in a thread of Ray's
            self.arrived.append(ref)
            _arrival.notify_all()


class Worked(Protocol):
    """What a wait runs: a pool, or anything else that makes calls of actors."""

    @property
    def outstanding(self) -> bool:
        """Whether a call runs or is due."""

    def watched(self) -> list[ObjectRef]:
        """Make the calls that are due. Returns the refs to wait for, which `settle` takes."""

    def settle(self, ref: ObjectRef) -> tuple[Task, Any] | None:
        """A ref is there: returns the task that has ended with its value, if one has."""

    def check_alive(self) -> None:
        """Replace what hangs, and raise when nothing can end any more. Called every `CHECK_EVERY_S`."""


_inboxes: WeakKeyDictionary[Worked, _Inbox] = WeakKeyDictionary()


def finished(*pools: Pool) -> Iterator[tuple[Pool, Task, Any]]:
    """Run the tasks of all pools: yields each without a callback when it ends, until none of these is left.

    The caller may submit tasks while it iterates. Raises what `Pool.settle` and `Pool.check_alive` raise, and
    `PoisonousTask` for a task on which workers die.
    """
    while any(pool.owes_values for pool in pools):
        _raise_poisonous(pools)
        for pool, task, value in _wait(pools):
            assert isinstance(pool, Pool)
            yield pool, task, value


def run_until(done: Callable[[], bool], *pools: Worked) -> None:
    """Run the tasks of all pools until `done()`, which callbacks of tasks make true.

    Raises:
        RuntimeError: No task is left, and `done()` is still false.
        PoisonousTask: Workers die on a task of a pool, perhaps one that the caller does not wait for.
        PoolError and Ray's errors: As `Pool.settle` and `Pool.check_alive`.
    """
    while not done():
        _raise_poisonous(pools)
        if not any(pool.outstanding for pool in pools):
            raise RuntimeError("no task is left that could end this wait")
        _wait(pools)


def run_while(refs: Sequence[ObjectRef], *pools: Worked) -> None:
    """Run the tasks of all pools until every one of `refs` is there, or one of their calls has failed.

    Raises:
        PoolError and Ray's errors: As `Pool.settle` and `Pool.check_alive`. An error of `refs` is not raised.
    """
    calls = _Inbox()
    calls.watch(refs)
    while calls.watched:
        _wait(pools, calls)
        while calls.arrived:
            try:
                fetched(calls.take(), "the value of a call")
            except RayError:
                return  # the other calls may wait for the failed one for ever


def _raise_poisonous(pools: Sequence[Worked]) -> None:
    for pool in pools:
        if isinstance(pool, Pool) and pool.queue.poisonous:
            raise pool.queue.poisonous.popleft()


def _wait(pools: Sequence[Worked], calls: _Inbox | None = None) -> list[tuple[Worked, Task, Any]]:
    """Wait until a task has ended, a worker has changed its state, or one of `calls` is there.

    Returns:
        The task without callback that has ended, if one has.
    """
    inboxes = {pool: _inboxes.setdefault(pool, _Inbox()) for pool in pools}
    for pool, inbox in inboxes.items():
        if pool.outstanding and time.monotonic() - inbox.checked >= CHECK_EVERY_S:
            pool.check_alive()
            inbox.checked = time.monotonic()
        inbox.watch(pool.watched())
    watched = [*inboxes.values(), *([] if calls is None else [calls])]
    with _arrival:
        _arrival.wait_for(lambda: any(inbox.arrived for inbox in watched), timeout=CHECK_EVERY_S)
    for pool, inbox in inboxes.items():
        while inbox.arrived:
            if settled := pool.settle(inbox.take()):
                task, value = settled
                if task.done is None:
                    return [(pool, task, value)]
                task.done(task, value)
    return []
