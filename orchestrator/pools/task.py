"""A call that any worker of a pool may run; and which call is to blame when workers die on it.

In: the calls that a worker ran when it died. Out: the one that kills workers, once that is clear. A worker
that dies takes all its calls with it, and most of them are innocent: only the call that was there more often
than every other one is blamed.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import ObjectRef

from orchestrator.errors import PoolError


@dataclass(eq=False)
class Task:
    """A call that any worker of the pool may run."""

    method: str
    arguments: tuple
    num_returns: int = 1
    context: Any = None
    """The caller's own, to recognise the task by."""
    remake: Callable[[], None] | None = None
    """Submits tasks that make this task's input and result again, for when they were lost with a node."""
    done: Callable[["Task", Any], None] | None = None
    """Called with the task and its value when it ends; without it `finished` yields them."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """What the task is on, for messages and the run's trace."""
    refs: list[ObjectRef] = field(default_factory=list)
    """The call's values, once it runs; `finished` fetches the last one."""
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    """When a worker got it, by `time.time`."""
    deaths: int = 0
    """Workers that died while they ran it."""

    def __str__(self) -> str:
        on = " ".join(f"{name} {value}" for name, value in self.labels.items())
        return f"{self.method} ({on})" if on else self.method


Observer = Callable[[str, int, Task | None, Any], None]
"""Called when a worker has returned a value: the pool's name, the worker's index, its task (None for a
broadcast or a refresh), and the value."""


def ignore(pool: str, worker: int, task: Task | None, value: Any) -> None:
    """The observer of a pool that none looks at."""


class PoisonousTask(PoolError):
    """Workers die on a task, so the pool does not run it again.

    Args:
        pool: The pool's name.
        task: The task.
        cause: The error of the last worker that died on it.
    """

    def __init__(self, pool: str, task: Task, cause: BaseException) -> None:
        super().__init__(
            f"{task.deaths} workers of the {pool} pool died on {task}: it is not tried again "
            f"(faults.max_attempts). The last error: {cause}"
        )
        self.pool = pool
        self.task = task
        self.cause = cause


class TaskQueue:
    """The tasks of a pool that wait for a worker, and what becomes of those whose worker has died.

    Args:
        pool: The pool's name.
        max_attempts: Workers that may die on a task until it is blamed for it.

    Attributes:
        tasks: The first one goes first.
        poisonous: What is blamed; `orchestrator.pools.events` raises it where the caller waits for tasks.
    """

    def __init__(self, pool: str, max_attempts: int) -> None:
        self.pool = pool
        self.max_attempts = max_attempts
        self.tasks: deque[Task] = deque()
        self.poisonous: deque[PoisonousTask] = deque()

    def __bool__(self) -> bool:
        """Whether a task waits, or one is to be raised."""
        return bool(self.tasks or self.poisonous)

    def take(self, running: Collection[Task]) -> Task | None:
        """The next task for a worker that runs these, if there is one. A suspect runs beside no other."""
        has_suspect = any(task.deaths >= self.max_attempts for task in running)
        fits = (task for task in self.tasks if not (has_suspect and task.deaths >= self.max_attempts))
        if (task := next(fits, None)) is not None:
            self.tasks.remove(task)
        return task

    def take_back(self, running: Collection[Task], error: BaseException, is_loss: bool = False) -> None:
        """A worker has died with these tasks: they are the next ones, but for one that is to blame.

        None is where the worker was lost with its node, or its connection (`is_loss`).

        That is the task on which at least `max_attempts` workers have died, and more than on any other of
        these. Where several have had as many, `take` keeps them apart from then on.
        """
        if is_loss:
            self.tasks.extendleft(reversed([*running]))
            return
        for task in running:
            task.deaths += 1
        most = max((task.deaths for task in running), default=0)
        suspects = [task for task in running if task.deaths == most]
        if most >= self.max_attempts and len(suspects) == 1:
            self.poisonous.append(PoisonousTask(self.pool, suspects[0], error))
            running = [task for task in running if task is not suspects[0]]
        self.tasks.extendleft(reversed([*running]))

    def clear(self) -> None:
        """Drop all."""
        self.tasks.clear()
        self.poisonous.clear()
