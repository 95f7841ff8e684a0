"""Ends a worker that hangs, after its stacks and the end of its log are read on its node.

In: actors, and what the watch says of one. Out: their progress; and an error that names the worker, what it
was doing, and the last lines of its log.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.experimental.internal_kv import internal_kv_get_gcs_client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.progress import STACKS_SIGNAL
from orchestrator.cluster.own_node import refuse_lost_node
from orchestrator.messages.progress import NAMESPACE, Progress
from orchestrator.pools.watch import Hang

READ_TIMEOUT_S = 5.0
"""How long the cluster's key-value store may take to answer; the next look tries again."""
EXAMINE_TIMEOUT_S = 60.0
"""How long a node may take to examine a process."""
STACKS_TIMEOUT_S = 15.0
LEAVING_S = 5.0
"""How long a process may take to end after Ray was told to end its actor."""
LOG_LINES = 20
LOG_BYTES = 2**16
"""How much is read from the end of a log."""


class HungWorker(RayActorError):
    """A worker made no progress, and its process was ended."""


@dataclass(frozen=True)
class Remains:
    """What is known of a process that was ended."""

    state: str
    """Such as `T (stopped)`; empty where there was no such process."""
    stacks: str
    log: str
    """The end of it."""


def progress_of(actors: Mapping[int, Any]) -> dict[int, Progress]:
    """The newest progress of each actor that has told any; of none where the cluster does not answer.

    Raises:
        PoolError: As `refuse_lost_node`.
    """
    refuse_lost_node()
    client = internal_kv_get_gcs_client()
    keys = {actor._actor_id.hex().encode(): number for number, actor in actors.items()}
    if client is None or not keys:
        return {}
    try:
        told = client.internal_kv_multi_get(list(keys), NAMESPACE, timeout=READ_TIMEOUT_S)
    except RayError:
        return {}
    return {keys[key]: Progress.from_bytes(value) for key, value in told.items()}


def end_hung(name: str, actor: Any, hang: Hang, folder: Path | None) -> HungWorker:
    """End the process of a worker that hangs. Returns the error that tells of it.

    Args:
        name: The worker's.
        folder: Where its stacks are kept; None keeps them in the message only.
    """
    told = hang.progress
    remains = _examined(told)
    ray.kill(actor)
    lines = [
        f"{name} made no progress for {hang.seconds:.0f} s in {hang.work} "
        f"(deadline {hang.deadline_s:.0f} s); the last thing that it did: {told.doing}. "
        f"Its process {told.pid} on node {told.node} was ended"
    ]
    if remains is None:
        lines.append("that node did not answer, so nothing more is known")
    else:
        lines.append(f"the process was in state {remains.state or 'gone'}")
        if folder is not None and remains.stacks:
            lines.append(f"its stacks are in {_kept(folder, name, remains.stacks)}")
        lines.append(f"the end of its log:\n{remains.log}")
    return HungWorker(actor._actor_id.hex(), "; ".join(lines))


def end_actors(actors: Sequence[Any]) -> None:
    """End actors and their processes; returns at once.

    Ray does not end a process that its message does not reach, because it is stopped for example. Such a
    process would keep its memory, and its place, which a new actor waits for.

    Raises:
        PoolError: As `refuse_lost_node`. Ray ends the actors then, and new ones could not start.
    """
    refuse_lost_node()
    for actor in actors:
        ray.kill(actor)
    with contextlib.suppress(RayError):  # a cluster that does not answer
        for pid, node in asyncio.run(_places(actors)):
            _on_node(node, _end_what_is_left).remote(pid)


async def _places(actors: Sequence[Any]) -> list[tuple[int, str]]:
    """The number of each actor's process, and its node. One that has no process yet is left out."""
    client = internal_kv_get_gcs_client()
    if client is None:
        return []
    found = await asyncio.gather(*(
        client.async_get_all_actor_info(actor_id=actor._actor_id, timeout=READ_TIMEOUT_S) for actor in actors
    ))  # fmt: skip
    rows = [row for of_actor in found for row in of_actor.values()]
    return [(row.pid, row.address.node_id.hex()) for row in rows if row.pid]


def _kept(folder: Path, name: str, stacks: str) -> Path:
    path = folder / f"{name.replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    with contextlib.suppress(OSError):  # a full disk must not end the run here
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(stacks, encoding="utf-8")
    return path


def _examined(told: Progress) -> Remains | None:
    """What a task on the worker's node finds before it ends the process; None where the node is silent."""
    ref = _on_node(told.node, _examine).remote(told.pid)
    try:
        return ray.get(ref, timeout=EXAMINE_TIMEOUT_S)
    except RayError:
        ray.cancel(ref, force=True)
        return None


def _on_node(node: str, function: Callable[..., Any]) -> Any:
    """The function as a task on a node, where no other one runs it."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)


def _end_what_is_left(pid: int) -> None:
    """End the process of an actor that Ray was told to end, if it is still there after a while."""
    deadline = time.monotonic() + LEAVING_S
    while _is_actor(pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    with contextlib.suppress(OSError):
        if _is_actor(pid):
            os.kill(pid, signal.SIGKILL)


def _is_actor(pid: int) -> bool:
    """Whether this process runs and is Ray's; another one may have the number by now."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def _examine(pid: int) -> Remains:
    """Read the stacks and the log of an actor's process, and end it; a stopped process ends too."""
    process = Path(f"/proc/{pid}")
    try:
        if not _is_actor(pid):
            return Remains("", "", "")
        status = process.joinpath("status").read_text()
        logs = [process.joinpath("fd", number).resolve() for number in ("1", "2")]
        state = next(line for line in status.splitlines() if line.startswith("State:")).split(":")[1].strip()
        stacks = _stacks(pid)
        if not stacks and not state.startswith("T"):
            os.kill(pid, STACKS_SIGNAL)  # into its log
            time.sleep(1.0)
        return Remains(state, stacks, "\n".join(filter(None, map(_end_of, dict.fromkeys(logs)))))
    except (OSError, StopIteration) as error:
        return Remains("", "", f"({error})")
    finally:
        with contextlib.suppress(OSError):
            if _is_actor(pid):
                os.kill(pid, signal.SIGKILL)


def _stacks(pid: int) -> str:
    """The stacks of a process by py-spy, which comes with Ray; empty where it cannot read them."""
    beside = str(Path(sys.executable).with_name("py-spy"))
    program = beside if Path(beside).exists() else shutil.which("py-spy")
    if program is None:
        return ""
    try:
        return subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=STACKS_TIMEOUT_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _end_of(log: Path) -> str:
    """The last lines of a log."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:])
