"""An actor of a pool as the driver sees it: its state, and the tasks that it runs."""

import re
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ray import ObjectRef
from ray.exceptions import ActorUnavailableError, RayActorError

from orchestrator.pools.task import Task
from orchestrator.pools.watch import BusyWith

NODE_DEATH = "its node has died"
"""In Ray's words on an actor that died with its node."""


class WorkerState(StrEnum):
    """A worker goes from STARTING to STALE to READY, and from READY nowhere: a dead one is replaced."""

    STARTING = "starting"
    """The actor has not answered yet."""
    STALE = "stale"
    """The actor answers, but needs the newest weights before it may work."""
    READY = "ready"


@dataclass(eq=False)
class Worker:
    """An actor of a pool, and what it works on."""

    index: int
    actor: Any
    is_replacement: bool
    waiting_for: ObjectRef | None
    """The call whose end moves the worker from STARTING or STALE to the next state; None when READY."""
    state: WorkerState = WorkerState.STARTING
    tasks: dict[ObjectRef, Task] = field(default_factory=dict)
    """The tasks that it runs, by their last ref."""
    refreshed_after: int = 0
    """Number of the pool's broadcasts before its refresh began."""
    since: float = field(default_factory=time.monotonic)

    @property
    def call(self) -> BusyWith | None:
        """What it works on, for the watch; None without work."""
        if self.waiting_for is not None:
            return self.state, self.waiting_for
        return ("tasks", self) if self.tasks else None

    def run(self, task: Task) -> ObjectRef:
        """Call the task's method; returns the ref of its last value."""
        call = getattr(self.actor, task.method).options(num_returns=task.num_returns)
        refs = call.remote(*task.arguments)
        task.refs = [refs] if task.num_returns == 1 else list(refs)
        task.started = time.time()
        self.tasks[task.refs[-1]] = task
        return task.refs[-1]


def is_loss(error: RayActorError) -> bool:
    """Whether an actor was lost with its node or its connection, so that nothing that it ran is to blame."""
    return isinstance(error, ActorUnavailableError) or NODE_DEATH in str(error)


def cause_of_death(error: BaseException) -> str:
    """What Ray says of an actor's death without ids and advice; all of it where it has another form."""
    text = str(error)
    found = {name: re.search(rf"^\s*{name}: (\S+)", text, re.MULTILINE) for name in ("pid", "ip")}
    if found["ip"] is not None and NODE_DEATH in text:
        why = re.search(r"node was terminated \w+: (.+)", text)
        return f"its node, {found['ip'][1]}, has died{f': {why[1]}' if why else ''}"
    detail = re.search(r"Worker exit detail: (.+?)\.?( Some common causes|$)", text, re.DOTALL)
    if detail is None or found["pid"] is None or found["ip"] is None:
        return text
    return f"its process {found['pid'][1]} on {found['ip'][1]} died: {detail[1]}"
