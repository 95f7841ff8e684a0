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
from ray.exceptions import ActorDiedError, ObjectLostError, RayActorError, RayTaskError

from orchestrator.errors import PoolError

CHECK_EVERY_S = 30.0

MAX_RESTARTS = 10
"""Deaths over a run that a pool makes good; one more ends the run."""


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
    remake: Callable[[], None] | None = None
    """Submits what makes this call's input and result anew, when a node took them with it."""
    refs: list[Any] = field(default_factory=list)
    submitted: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Worker:
    index: int
    actor: Any
    is_replacement: bool
    waiting_for: Any
    """The ref that ends STARTING or STALE; None when READY."""
    state: WorkerState = WorkerState.STARTING
    tasks: dict[Any, Task] = field(default_factory=dict)
    refreshed_after: int = 0
    """Broadcasts that had been made when its refresh began."""
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment."""

    queued: int
    """Tasks that no worker has room for."""
    oldest_queued_s: float
    """Seconds since the oldest of them was submitted; 0 without any."""
    in_flight: int
    workers: dict[WorkerState, int]
    """Their number in each state."""
    restarts: int


class Pool:
    """`size` actors made by `spawn(index)`, each with at most `capacity` tasks at a time.

    Args:
        name: For messages.
        refresh: Called with an actor that answers for the first time; returns a ref that ends when it may work, or None. Called
            again when a broadcast has been made meanwhile.
        max_restarts: Replacements over the pool's life; one more death raises `PoolError`.
        start_timeout_s: How long the pool may be without any worker that can take tasks.
    """

    def __init__(
        self,
        name: str,
        spawn: Callable[[int], Any],
        size: int,
        capacity: int,
        refresh: Callable[[Any], Any] = lambda actor: None,
        max_restarts: int = MAX_RESTARTS,
        start_timeout_s: float = 1800.0,
    ) -> None:
        self.name, self.spawn, self.capacity, self.refresh = name, spawn, capacity, refresh
        self.max_restarts, self.start_timeout_s = max_restarts, start_timeout_s
        self.restarts = 0
        self.broadcasts = 0
        self.queue: deque[Task] = deque()
        self.workers = [self._start(index, is_replacement=False) for index in range(size)]

    def submit(
        self,
        method: str,
        *arguments: Any,
        num_returns: int = 1,
        context: Any = None,
        remake: Callable[[], None] | None = None,
    ) -> None:
        """Queue a call; it starts when a ready worker has room."""
        self.queue.append(Task(method, arguments, num_returns, context, remake))

    def wait_ready(self, timeout_s: float) -> None:
        """Block until every worker answers and is up to date.

        Raises:
            PoolError: Not all did within `timeout_s`, or one could not be started, or they died too often.
        """
        deadline = time.monotonic() + timeout_s
        while waiting := [worker.waiting_for for worker in self.workers if worker.waiting_for is not None]:
            ready, _ = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PoolError(
                    f"the {self.name} pool did not start within {timeout_s:g} s ({self._states()})"
                )
            self.settle(ready[0])

    def broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Call every ready worker and wait; one that dies meanwhile is replaced. The others are refreshed before they are ready.

        Raises:
            ray.exceptions.RayTaskError, ray.exceptions.ObjectLostError: The call failed; raised when all workers have answered or died.
        """
        self.broadcasts += 1
        calls = [
            (worker, getattr(worker.actor, method).remote(*arguments))
            for worker in self.workers
            if worker.state is WorkerState.READY
        ]
        values, failure = [], None
        for worker, ref in calls:
            try:
                values.append(ray.get(ref))
            except (
                RayTaskError,
                ObjectLostError,
            ) as error:  # ahead of RayActorError: a call that met another actor's death raises both
                failure = failure or error
            except RayActorError as error:
                self._replace(worker, error)
        if failure is not None:
            raise failure
        return values

    def stats(self) -> PoolStats:
        """What the pool is doing now; may be asked from another thread."""
        submitted = [task.submitted for task in list(self.queue)]  # a copy: the pool goes on meanwhile
        states = [worker.state for worker in self.workers]
        return PoolStats(
            queued=len(submitted),
            oldest_queued_s=time.monotonic() - min(submitted) if submitted else 0.0,
            in_flight=sum(len(worker.tasks) for worker in self.workers),
            workers={state: states.count(state) for state in WorkerState},
            restarts=self.restarts,
        )

    @property
    def outstanding(self) -> bool:
        return bool(self.queue) or any(worker.tasks for worker in self.workers)

    def watched(self) -> list[Any]:
        """Start what can start, and return the refs whose end `settle` should hear of."""
        ready = [worker for worker in self.workers if worker.state is WorkerState.READY]
        while self.queue and ready:
            worker = min(ready, key=lambda worker: len(worker.tasks))
            if len(worker.tasks) >= self.capacity:
                break
            self._run(worker, self.queue.popleft())
        waiting = [worker.waiting_for for worker in self.workers if worker.waiting_for is not None]
        return waiting + [ref for worker in self.workers for ref in worker.tasks]

    def settle(self, ref: Any) -> tuple[Task, Any] | None:
        """Take note of a ref that ended: a task with its value, or None when a worker changed its state or died.

        Raises:
            PoolError: A worker cannot be started, the restart budget is used up, or data was lost with a node that nobody can remake.
            ray.exceptions.ObjectLostError: What a worker was to be refreshed with was lost; the owner may have it anew.
            ray.exceptions.RayTaskError: The task itself failed; that is a fault in the work, not in the worker.
            ray.exceptions.RayActorError: What the pool's `refresh` raises when the owner of the worker's data has died.
        """
        worker = next(worker for worker in self.workers if ref in worker.tasks or worker.waiting_for == ref)
        try:
            value = ray.get(ref)
        except ObjectLostError as error:
            task = worker.tasks.pop(ref, None)
            if task is None:  # what it was to be refreshed with
                worker.state, worker.waiting_for = WorkerState.STARTING, worker.actor.ping.remote()
                raise
            if task.remake is None:
                raise PoolError(
                    f"the {self.name} pool cannot go on: data of a task went down with its node: {error}"
                ) from error
            task.remake()
            return None
        except RayTaskError:  # ahead of RayActorError: a task that met another actor's death raises both
            worker.tasks.pop(ref, None)
            raise
        except RayActorError as error:
            self._replace(worker, error)
            return None
        if ref in worker.tasks:
            return worker.tasks.pop(ref), value
        self._advance(worker)
        return None

    def check_alive(self) -> None:
        """Raises PoolError when no worker has been ready for `start_timeout_s`: a cluster that lost a node may have no room for another."""
        waited = min(time.monotonic() - worker.since for worker in self.workers)
        if waited > self.start_timeout_s and all(
            worker.state is not WorkerState.READY for worker in self.workers
        ):
            raise PoolError(
                f"the {self.name} pool has had no ready worker for {waited:.0f} s ({self._states()})"
            )

    def abandon(self) -> None:
        """Drop every task; nobody wants the values of those that run."""
        self.queue.clear()
        for worker in self.workers:
            worker.tasks.clear()

    def stop(self) -> None:
        """Kill every worker and drop every task."""
        self.abandon()
        for worker in self.workers:
            ray.kill(worker.actor)

    def _start(self, index: int, is_replacement: bool) -> _Worker:
        actor = self.spawn(index)
        return _Worker(index, actor, is_replacement, waiting_for=actor.ping.remote())

    def _advance(self, worker: _Worker) -> None:
        """What a worker waited for has come: STARTING becomes STALE, STALE becomes READY unless it was overtaken by a broadcast."""
        if worker.state is WorkerState.STALE and worker.refreshed_after == self.broadcasts:
            worker.waiting_for = None
        else:
            refreshed_after, refresh = (
                self.broadcasts,
                self.refresh(worker.actor),
            )  # may raise: then it stays as it was
            worker.state, worker.refreshed_after, worker.waiting_for = (
                WorkerState.STALE,
                refreshed_after,
                refresh,
            )
        if worker.waiting_for is None:
            worker.state = WorkerState.READY

    def _run(self, worker: _Worker, task: Task) -> None:
        refs = (
            getattr(worker.actor, task.method).options(num_returns=task.num_returns).remote(*task.arguments)
        )
        task.refs = [refs] if task.num_returns == 1 else list(refs)
        worker.tasks[task.refs[-1]] = task

    def _replace(self, worker: _Worker, error: RayActorError) -> None:
        if isinstance(error, ActorDiedError) and error.actor_init_failed and not worker.is_replacement:
            # Not an accident of a worker that worked: others, and later ones, would fail like it.
            raise PoolError(f"{self.name} worker {worker.index} cannot be started: {error}") from error
        self.restarts += 1
        if self.restarts > self.max_restarts:
            raise PoolError(
                f"workers of the {self.name} pool died {self.restarts} times, more than the {self.max_restarts} restarts it may use; "
                f"the last one said: {error}"
            ) from error
        self.queue.extendleft(reversed(worker.tasks.values()))
        ray.kill(worker.actor)
        self.workers[worker.index] = self._start(worker.index, is_replacement=True)

    def _states(self) -> str:
        return ", ".join(f"{self.name} {worker.index}: {worker.state}" for worker in self.workers)


def finished(*pools: Pool) -> Iterator[tuple[Pool, Task, Any]]:
    """Tasks of all pools as they end, until none is outstanding. Tasks submitted meanwhile join."""
    while any(pool.outstanding for pool in pools):
        owner = {ref: pool for pool in pools for ref in pool.watched()}
        ready, _ = ray.wait(list(owner), num_returns=1, timeout=CHECK_EVERY_S)
        for ref in ready:
            if settled := owner[ref].settle(ref):
                yield owner[ref], *settled
        if not ready:
            for pool in pools:
                pool.check_alive()
