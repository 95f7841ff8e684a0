"""A supervised pool of equal actors: it restarts workers, retries their tasks and limits the tasks of each.

In: tasks, which are a method and its arguments. Out: their values in the order in which tasks end, to each
task's callback or from `orchestrator.pools.events.finished`. The pool replaces a worker that dies and gives
its tasks to others. A replacement is STALE, and gets no task, until the pool's `refresh` has brought it up to
date.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import ActorDiedError, ObjectLostError, RayActorError, RayTaskError

from orchestrator.cluster.waits import fetched
from orchestrator.errors import PoolError
from orchestrator.pools.budgets import DeathBudget
from orchestrator.pools.hung import end_actors, end_hung, progress_of
from orchestrator.pools.task import Observer, Task, TaskQueue, ignore
from orchestrator.pools.watch import BusyWith, Watch
from orchestrator.pools.worker import Worker, WorkerState, cause_of_death, is_loss
from orchestrator.terminal import LOGGER

CHECK_EVERY_S = 5.0
"""How often a wait checks that each pool has a ready worker, and that its busy ones make progress."""

POOL_START_TIMEOUT_S = 1800.0
"""How long workers may take to start: a large model is read from a slow disk, or downloaded."""


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment."""

    queued: int
    """Tasks that wait because no worker has room."""
    oldest_queued_s: float
    """Age of the oldest queued task in seconds; 0 when none is queued."""
    in_flight: int
    """Tasks that workers run."""
    workers: dict[WorkerState, int]
    """Number of workers in each state."""
    restarts: int


class Pool:
    """A number of actors, each with a limited number of tasks at a time.

    Args:
        name: For messages.
        spawn: Called with a worker's index, 0 to `size - 1`; returns an actor with a method `ping`.
        size: Number of workers.
        capacity: Tasks that one worker runs at a time; the others wait in the pool's queue.
        refresh: Called with an actor once it answers. Returns the ref of a call after which it may work, or
            None when it may work at once. Called again when a broadcast has been made meanwhile.
        budget: The deaths that the pool bears; its work is tasks.
        max_attempts: Workers that may die on a task, see `TaskQueue`.
        watch: Says which workers hang.
        start_timeout_s: How long the pool may have no ready worker.

    Attributes:
        note: Called with a message when a worker is replaced.
    """

    def __init__(
        self,
        name: str,
        spawn: Callable[[int], Any],
        size: int,
        capacity: int,
        refresh: Callable[[Any], ObjectRef | None] = lambda actor: None,
        budget: DeathBudget | None = None,
        max_attempts: int = 2,
        watch: Watch | None = None,
        start_timeout_s: float = POOL_START_TIMEOUT_S,
    ) -> None:
        self.name = name
        self.spawn = spawn
        self.capacity = capacity
        self.refresh = refresh
        self.budget = budget or DeathBudget(f"workers of the {name} pool")
        self.start_timeout_s = start_timeout_s
        self.watch = watch or Watch()
        self.note: Callable[[str], None] = LOGGER.warning
        self.restarts = self.broadcasts = 0
        self.queue = TaskQueue(name, max_attempts)
        self.observer: Observer = ignore
        self._new_refs: list[ObjectRef] = []
        """What `watched` has not returned yet."""
        self.workers = [self._start(index, is_replacement=False) for index in range(size)]

    def submit(
        self,
        method: str,
        *arguments: Any,
        num_returns: int = 1,
        context: Any = None,
        remake: Callable[[], None] | None = None,
        done: Callable[[Task, Any], None] | None = None,
        labels: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Queue a call; it starts when a ready worker has room. See `Task`."""
        self.queue.tasks.append(Task(method, arguments, num_returns, context, remake, done, labels))

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Block until every worker is READY.

        Args:
            timeout_s: In place of the pool's `start_timeout_s`.

        Raises:
            PoolError: Time ran out, a worker could not be started, or workers died too often.
        """
        timeout_s = self.start_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        while waiting := self._transitions():
            left = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(waiting, num_returns=1, timeout=min(left, CHECK_EVERY_S))
            if ready:
                self.settle(ready[0])
            elif not left:
                raise PoolError(
                    f"the {self.name} pool did not start within {timeout_s:g} s ({_states(self)})"
                )
            else:
                _replace_hung(self, {})

    def broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Call every READY worker and wait for all; returns the values of those that answered.

        The pool replaces a worker that dies in the call. Workers that are not READY are refreshed before they
        work.

        Raises:
            ray.exceptions.RayTaskError, ray.exceptions.ObjectLostError: The call failed on a worker. Raised
                once all workers have answered or died.
        """
        self.broadcasts += 1
        started = time.monotonic()
        calls = {
            getattr(worker.actor, method).remote(*arguments): worker
            for worker in self.workers
            if worker.state is WorkerState.READY
        }
        values, failure = [], None
        for ref, worker in calls.items():
            try:
                _wait_for_call(self, ref, method, calls, started)
                values.append(fetched(ref, f"a value of the {self.name} pool"))
                self.observer(self.name, worker.index, None, values[-1])
            # A call that failed because another actor died raises an error of both types RayTaskError and
            # RayActorError. It says nothing about this worker, so it is caught here, before RayActorError.
            except (RayTaskError, ObjectLostError) as error:
                failure = failure or error
            except RayActorError as error:
                if worker in self.workers:
                    self.replace(worker, error)
        if failure is not None:
            raise failure
        return values

    def stats(self) -> PoolStats:
        """The pool's numbers now. Safe to call from another thread."""
        return _stats(self)

    @property
    def outstanding(self) -> bool:
        """Whether any task is queued or runs."""
        return bool(self.queue) or any(worker.tasks for worker in self.workers)

    @property
    def owes_values(self) -> bool:
        """Whether any task without a callback is queued or runs: `finished` has to yield it."""
        running = (task for worker in self.workers for task in worker.tasks.values())
        tasks = (*self.queue.tasks, *running)
        return bool(self.queue.poisonous) or any(task.done is None for task in tasks)

    def start_tasks(self) -> None:
        """Give the queued tasks to workers, as far as these have room."""
        tasks = self.queue.tasks
        ready = [worker for worker in self.workers if tasks and worker.state is WorkerState.READY]
        while tasks and ready:
            worker = min(ready, key=lambda worker: len(worker.tasks))
            if len(worker.tasks) >= self.capacity:
                break
            if task := self.queue.take(worker.tasks.values()):
                self.watch_for(worker.run(task))
            else:
                ready.remove(worker)

    def watched(self) -> list[ObjectRef]:
        """Start tasks. Returns the refs to wait for, which `settle` takes: each once, to one waiter."""
        self.start_tasks()
        new, self._new_refs = self._new_refs, []
        return new

    def settle(self, ref: ObjectRef) -> tuple[Task, Any] | None:
        """Record that a ref has ended: returns its task and value, or None when only a worker's state
        changed.

        Raises:
            PoolError: A worker cannot be started, workers died too often, or a task's data was lost with a
                node and the task has no `remake`.
            ray.exceptions.ObjectLostError: The data of a refresh was lost. Its owner must make it again.
            ray.exceptions.RayTaskError: The task itself failed. A retry would fail too.
            ray.exceptions.RayActorError: Raised by `refresh`: the owner of its data has died.
        """
        worker = next((each for each in self.workers if ref in each.tasks or each.waiting_for == ref), None)
        if worker is None:
            return None  # of a task that was dropped, or of a worker that was replaced
        try:
            value = fetched(ref, f"a value of the {self.name} pool")
        except ObjectLostError as error:
            _settle_lost(self, worker, ref, error)
            return None
        except RayTaskError:  # before RayActorError, as in `broadcast`
            if worker.tasks.pop(ref, None) is None:
                self.watch_for(ref)  # the worker still waits for it
            raise
        except RayActorError as error:
            self.replace(worker, error)
            return None
        task = worker.tasks.pop(ref, None)
        self.observer(self.name, worker.index, task, value)
        if task is not None:
            self.budget.work()
            return task, value
        self._advance(worker)
        return None

    def check_alive(self) -> None:
        """Replace workers that hang. Check that the pool has a ready worker, or had too little time for one.

        Raises:
            PoolError: No worker has been ready for `start_timeout_s`. A cluster that lost a node may have no
                room for a replacement.
        """
        _replace_hung(self, {})
        waited = min((time.monotonic() - worker.since for worker in self.workers), default=0.0)
        if waited > self.start_timeout_s and not any(
            worker.state is WorkerState.READY for worker in self.workers
        ):
            raise PoolError(
                f"the {self.name} pool has had no ready worker for {waited:.0f} s ({_states(self)})"
            )

    def abandon(self) -> None:
        """Drop every task. Those that run continue, but their values are ignored."""
        self.queue.clear()
        for worker in self.workers:
            worker.tasks.clear()

    def stop(self) -> None:
        """Drop every task and kill every worker."""
        self.abandon()
        end_actors([worker.actor for worker in self.workers])

    def _start(self, index: int, is_replacement: bool) -> Worker:
        actor = self.spawn(index)
        return Worker(index, actor, is_replacement, waiting_for=self.watch_for(actor.ping.remote()))

    def watch_for(self, ref: ObjectRef) -> ObjectRef:
        """Have `watched` return this ref."""
        self._new_refs.append(ref)
        return ref

    def _transitions(self) -> list[ObjectRef]:
        """The refs that workers wait for to become STALE or READY."""
        return [worker.waiting_for for worker in self.workers if worker.waiting_for is not None]

    def _advance(self, worker: Worker) -> None:
        """Move a worker whose `waiting_for` has ended: STARTING to STALE, or STALE to READY.

        A STALE worker that missed a broadcast while it was refreshed stays STALE, and is refreshed once more.
        """
        if worker.state is WorkerState.STALE and worker.refreshed_after == self.broadcasts:
            worker.state, worker.waiting_for = WorkerState.READY, None
            return
        broadcasts = self.broadcasts
        try:
            ref = self.refresh(worker.actor)
        except Exception:
            self.watch_for(worker.waiting_for)  # its state stays as it is
            raise
        worker.refreshed_after = broadcasts
        worker.waiting_for = None if ref is None else self.watch_for(ref)
        worker.state = WorkerState.READY if ref is None else WorkerState.STALE

    def replace(self, worker: Worker, error: RayActorError) -> None:
        """Start another actor for a dead worker, and put its tasks back at the head of the queue."""
        _count_restart(self, worker, error)
        self.note(f"{self.name} worker {worker.index} is replaced: {cause_of_death(error)}")
        self.queue.take_back(worker.tasks.values(), error, is_loss(error))
        end_actors([worker.actor])
        self.workers[worker.index] = self._start(worker.index, is_replacement=True)


def _states(pool: Pool) -> str:
    return ", ".join(f"{pool.name} {worker.index}: {worker.state}" for worker in pool.workers)


def _stats(pool: Pool) -> PoolStats:
    waiting = list(pool.queue.tasks)  # a copy, because the queue changes meanwhile
    submitted = [task.submitted for task in waiting]
    states = [worker.state for worker in pool.workers]
    return PoolStats(
        queued=len(submitted),
        oldest_queued_s=time.monotonic() - min(submitted) if submitted else 0.0,
        in_flight=sum(len(worker.tasks) for worker in pool.workers),
        workers={state: states.count(state) for state in WorkerState},
        restarts=pool.restarts,
    )


def _count_restart(pool: Pool, worker: Worker, error: RayActorError) -> None:
    """Count a worker that died, and raise where its death ends the run."""
    if isinstance(error, ActorDiedError) and error.actor_init_failed and not worker.is_replacement:
        # The first start failed, so every other worker would fail too.
        raise PoolError(f"{pool.name} worker {worker.index} cannot be started: {error}") from error
    pool.restarts += 1
    pool.budget.spend(error)


def _wait_for_call(
    pool: Pool, ref: ObjectRef, method: str, calls: Mapping[ObjectRef, Worker], started: float
) -> None:
    """Wait for one of `calls`, all of `method` and made at `started`; the pool replaces workers that hang."""
    missing = dict(calls)
    while not ray.wait([ref], timeout=CHECK_EVERY_S)[0]:
        there, _ = ray.wait(list(missing), num_returns=len(missing), timeout=0)
        missing = {each: worker for each, worker in missing.items() if each not in there}
        _replace_hung(pool, {worker: (method, each) for each, worker in missing.items()})
    if (seconds := time.monotonic() - started) < CHECK_EVERY_S:  # the watch has not seen it
        pool.watch.measure(method, seconds)


def _replace_hung(pool: Pool, calls: Mapping[Worker, BusyWith]) -> None:
    """Replace workers that make no progress with their tasks, or with one of `calls`."""
    busy = {worker.index: call for worker in pool.workers if (call := calls.get(worker) or worker.call)}
    told = progress_of({index: pool.workers[index].actor for index in busy})
    for hang in pool.watch.look(busy, told):
        worker = pool.workers[hang.worker]
        error = end_hung(f"{pool.name} worker {worker.index}", worker.actor, hang, pool.watch.stacks)
        pool.replace(worker, error)


def _settle_lost(pool: Pool, worker: Worker, ref: ObjectRef, error: ObjectLostError) -> None:
    """A node has died with the data of a task, or of a refresh: make the data again, or raise."""
    task = worker.tasks.pop(ref, None)
    if task is None:
        worker.state = WorkerState.STARTING
        worker.waiting_for = pool.watch_for(worker.actor.ping.remote())
        raise error
    if task.remake is None:
        raise PoolError(
            f"the {pool.name} pool cannot continue: the data of a task was lost with its node: {error}"
        ) from error
    task.remake()
