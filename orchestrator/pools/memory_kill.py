"""Recognises an actor that died because memory ran out, from what Ray says about it.

In: an exception from an actor. Out: a `MemoryKill`, or None where the failure is another one. Ray's memory
monitor, the kernel, and an allocation that fails inside the actor each say it in another way, and the first
one in sixty lines.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from orchestrator.pools.hung import HungWorker

ACTORS = {
    "LearnerRank": "learner rank",
    "RayTrainWorker": "learner rank",
    "RolloutWorker": "engine",
    "VerificationWorker": "verifier",
}
"""What users read, by the class's name in Ray's messages."""

_NODE = re.compile(r"\(IP: (?P<node>[^,)]+).*?was (?P<used>[\d.]+)GB used / (?P<limit>[\d.]+)GB limit", re.S)
_KILLED = re.compile(
    r"Selected to kill: \(.*?task name=(?P<task>\w+).*?actual memory used=(?P<used>[\d.]+)GB"
)
_ALLOCATION = re.compile(
    r"MemoryError|can't allocate memory|Cannot allocate memory|CUDA out of memory|std::bad_alloc"
)
_CLASS = re.compile(rf"\b({'|'.join(ACTORS)})\b")


@dataclass(frozen=True)
class MemoryKill:
    """An actor that memory ran out for. Sizes are in GiB, None where nobody says them."""

    actor: str
    """Such as `learner rank 0`; `an actor` where the failure does not say which."""
    by: str
    """What ended it."""
    used: float | None = None
    node: str | None = None
    node_used: float | None = None
    node_limit: float | None = None

    def told(self) -> str:
        """Who was ended, by what, and how much was in use."""
        used = f", which used {self.used:.1f} GiB" if self.used is not None else ""
        where = (
            f" when {self.node_used:.1f} of the {self.node_limit:.1f} GiB of node {self.node} were in use"
            if self.node_used is not None and self.node_limit is not None
            else ""
        )
        return f"{self.by} ended {self.actor}{used}{where}"


def memory_kill(error: BaseException | None) -> MemoryKill | None:
    """What ran out of memory, if this failure is one."""
    if error is None or isinstance(error, HungWorker):  # the end of its log may speak of memory
        return None
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        killed, node = _KILLED.search(text), _NODE.search(text)
        return MemoryKill(
            actor=_name(error, killed["task"] if killed else ""),
            by="Ray's memory monitor",
            used=float(killed["used"]) if killed else None,
            node=node["node"] if node else None,
            node_used=float(node["used"]) if node else None,
            node_limit=float(node["limit"]) if node else None,
        )
    if isinstance(error, RayTaskError) and _ALLOCATION.search(text):
        return MemoryKill(_name(error, text), by="a failed allocation")
    if isinstance(error, RayActorError) and ("SIGKILL" in text or "OOM" in text):
        # Ray sees only that the process is gone.
        return MemoryKill(_name(error, text), by="SIGKILL, most often the kernel's where memory runs out,")
    return None


def general_advice(kill: MemoryKill) -> list[str]:
    """Settings that lower the memory of this kind of actor, where no plan gives values."""
    if "engine" in kill.actor:
        return ["to lower it: a smaller kv_cache_gib, fewer engines, or dtype=bfloat16"]
    return [
        "to lower it: a smaller learning.tokens_per_micro_batch, learning.gradient_checkpointing=true, or "
        "learning.dtype=bfloat16"
    ]


def name_actor(error: BaseException, actors: Sequence[Any], name: str) -> None:
    """Note on a failure which of a pool's actors it is about, for `memory_kill`, if it says."""
    said = f"{error} {getattr(error, 'actor_id', '')}"
    for number, actor in enumerate(actors):
        if actor._actor_id.hex() in said:
            error.add_note(f"{name} {number}")
            return


def _name(error: BaseException, text: str) -> str:
    """The actor's name from the note on the error, or else the kind of actor from its text."""
    names = tuple(ACTORS.values())
    for note in getattr(error, "__notes__", ()):
        if note.startswith(names):
            return note
    found = _CLASS.search(text)
    return f"a {ACTORS[found[1]]}".replace("a engine", "an engine") if found else "an actor"
