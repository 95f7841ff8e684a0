"""A supervised pool of like actors: health, restart, retry and back-pressure, the same for every kind of worker.

In: tasks (a method and its arguments). Out of `finished`, as they end and in any order: the tasks with their values. A worker that
dies is replaced and its tasks are given to others; a replacement is STALE until the pool's `refresh` has brought it up to date.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import ray
from ray.exceptions import RayActorError

from orchestrator.errors import PoolError


class WorkerState(StrEnum):
    STARTING = "starting"
    """The actor has been asked for and has not answered yet."""
    STALE = "stale"
    """It answers, but must be refreshed (new weights) before it may work."""
    READY = "ready"


@dataclass(eq=False)
class Task:
    """A call to be made on any worker. `refs` are the call's ObjectRefs once it runs; the last one is fetched when it ends."""

    method: str
    arguments: tuple
    num_returns: int = 1
    context: Any = None
    refs: list[Any] = field(default_factory=list)
    attempts: int = 0


@dataclass(eq=False)
class _Worker:
    index: int
    actor: Any
    state: WorkerState = WorkerState.STARTING
    tasks: dict[Any, Task] = field(default_factory=dict)
    waiting_for: Any = None
    """The ref that ends STARTING or STALE."""


class Pool:
    """`size` actors made by `spawn(index)`, each with at most `capacity` tasks at a time.

    Args:
        name: For messages.
        refresh: Called with an actor that answers for the first time; returns a ref that ends when it may work, or None.
        max_restarts: Replacements over the pool's life; one more death raises `PoolError`.
    """

    def __init__(
        self,
        name: str,
        spawn: Callable[[int], Any],
        size: int,
        capacity: int,
        refresh: Callable[[Any], Any] = lambda actor: None,
        max_restarts: int = 10,
    ) -> None:
        self.name, self.spawn, self.capacity, self.refresh, self.max_restarts = name, spawn, capacity, refresh, max_restarts
        self.restarts = 0
        self.queue: deque[Task] = deque()
        self.workers = [self._start(index) for index in range(size)]

    def submit(self, method: str, *arguments: Any, num_returns: int = 1, context: Any = None) -> None:
        """Queue a call; it starts when a ready worker has room."""
        self.queue.append(Task(method, arguments, num_returns, context))

    def wait_ready(self, timeout_s: float) -> None:
        """Block until every worker answers and is up to date.

        Raises:
            PoolError: Not all did within `timeout_s`, or they died too often.
        """
        deadline = time.monotonic() + timeout_s
        while any(worker.state is not WorkerState.READY for worker in self.workers):
            waiting = [worker.waiting_for for worker in self.workers if worker.waiting_for is not None]
            ready, _ = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                states = ", ".join(f"{self.name} {worker.index}: {worker.state}" for worker in self.workers)
                raise PoolError(f"the {self.name} pool did not start within {timeout_s:.0f} s ({states})")
            self.settle(ready[0])

    def broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Call every ready worker and wait; one that dies meanwhile is replaced (and refreshed when it answers)."""
        calls = [(worker, getattr(worker.actor, method).remote(*arguments)) for worker in self.workers if worker.state is WorkerState.READY]
        values = []
        for worker, ref in calls:
            try:
                values.append(ray.get(ref))
            except RayActorError as error:
                self._replace(worker, error)
        return values

    @property
    def outstanding(self) -> bool:
        return bool(self.queue) or any(worker.tasks for worker in self.workers)

    def watched(self) -> list[Any]:
        """Start what can start, and return the refs whose end `settle` should hear of."""
        for worker in sorted(self.workers, key=lambda worker: len(worker.tasks)):
            while self.queue and worker.state is WorkerState.READY and len(worker.tasks) < self.capacity:
                self._run(worker, self.queue.popleft())
        waiting = [worker.waiting_for for worker in self.workers if worker.waiting_for is not None]
        return waiting + [ref for worker in self.workers for ref in worker.tasks]

    def settle(self, ref: Any) -> tuple[Task, Any] | None:
        """Take note of a ref that ended: a task with its value, or None when a worker changed its state or died.

        Raises:
            PoolError: The restart budget is used up.
            ray.exceptions.RayTaskError: The task itself failed; that is a fault in the work, not in the worker.
        """
        worker = next(w for w in self.workers if ref in w.tasks or w.waiting_for is ref or w.waiting_for == ref)
        try:
            value = ray.get(ref)
        except RayActorError as error:
            self._replace(worker, error)
            return None
        if ref in worker.tasks:
            return worker.tasks.pop(ref), value
        if worker.state is WorkerState.STARTING:
            worker.state, worker.waiting_for = WorkerState.STALE, self.refresh(worker.actor)
        else:
            worker.waiting_for = None
        if worker.waiting_for is None:
            worker.state = WorkerState.READY
        return None

    def stop(self) -> None:
        """Kill every worker; queued tasks are dropped."""
        self.queue.clear()
        for worker in self.workers:
            ray.kill(worker.actor)

    def _start(self, index: int) -> _Worker:
        worker = _Worker(index, self.spawn(index))
        worker.waiting_for = worker.actor.ping.remote()
        return worker

    def _run(self, worker: _Worker, task: Task) -> None:
        task.attempts += 1
        refs = getattr(worker.actor, task.method).options(num_returns=task.num_returns).remote(*task.arguments)
        task.refs = [refs] if task.num_returns == 1 else list(refs)
        worker.tasks[task.refs[-1]] = task

    def _replace(self, worker: _Worker, error: RayActorError) -> None:
        self.restarts += 1
        if self.restarts > self.max_restarts:
            raise PoolError(
                f"workers of the {self.name} pool died {self.restarts} times, more than the {self.max_restarts} restarts it may use; "
                f"the last one said: {error}"
            ) from error
        self.queue.extendleft(reversed(worker.tasks.values()))
        ray.kill(worker.actor)
        self.workers[worker.index] = self._start(worker.index)


def finished(*pools: Pool) -> Iterator[tuple[Pool, Task, Any]]:
    """Tasks of all pools as they end, until none is outstanding. Tasks submitted meanwhile join."""
    while any(pool.outstanding for pool in pools):
        owner = {ref: pool for pool in pools for ref in pool.watched()}
        ready, _ = ray.wait(list(owner), num_returns=1)
        for ref in ready:
            if settled := owner[ref].settle(ref):
                yield owner[ref], *settled
