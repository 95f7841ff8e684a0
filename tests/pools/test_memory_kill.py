"""A death for want of memory is told in three lines, whoever ended the actor."""

import re
import subprocess
import sys

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from orchestrator.errors import PoolError, RunError
from orchestrator.pools.failures import translated_failures
from orchestrator.pools.memory_kill import MemoryKill, memory_kill, name_actor

KILLED = """1 worker(s) were killed due to the node running low on memory. Memory on the node \
(IP: 192.0.2.2, ID: 7dd3fc4e33e6) was 22.37GB used / 23.54GB limit (0.950298)
OOM kill reason: Memory usage 24020000000B exceeded threshold of 24012676915B (95.0% of 25276502016B limit)
Object store memory usage: [- objects spillable: 0
- bytes spillable: 0
Eviction Stats:
(global lru) capacity: 6611479756
(global lru) used: 0%]
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Actor(2eb79f316e6f1e8c2292de5c01000000): job ID=01000000, lease ID=0000, task name=\
LearnerRank.__init__, required resources={CPU: 1}, pid=1552, actual memory used=14.41GB, worker ID=6759)
]
Top 10 memory users: PID	MEM(GB)	COMMAND
1552	14.41	ray::LearnerRank.step
1555	2.45	ray::RolloutWorker
Refer to the documentation on how to address the out of memory issue."""
"""As Ray 2.60 wrote it, shortened."""
DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: RolloutWorker
\tactor_id: 0f2a
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: \
Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the \
process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the \
worker crashed unexpectedly due to SIGSEGV or another unexpected error."""


class Actor:
    """A handle; only its id is asked for."""

    def __init__(self, number: str) -> None:
        self._actor_id = bytes.fromhex(number)


def test_rays_memory_monitor_says_which_actor_and_how_much():
    assert memory_kill(OutOfMemoryError(KILLED)) == MemoryKill(
        actor="a learner rank",
        by="Ray's memory monitor",
        used=14.41,
        node="192.0.2.2",
        node_used=22.37,
        node_limit=23.54,
    )


def test_the_rank_is_named_by_the_actor_that_ray_killed():
    error = OutOfMemoryError(KILLED)
    ranks = [Actor("00" * 16), Actor("2eb79f316e6f1e8c2292de5c01000000")]
    name_actor(error, ranks, "learner rank")
    kill = memory_kill(error)
    assert kill is not None
    assert kill.actor == "learner rank 1"


def test_a_message_that_ray_words_otherwise_is_still_a_memory_kill():
    kill = memory_kill(OutOfMemoryError("Task was killed due to the node running low on memory."))
    assert kill == MemoryKill("an actor", "Ray's memory monitor")
    assert kill.told() == "Ray's memory monitor ended an actor"


def failed_task(cause: Exception) -> RayTaskError:
    trace = (
        f"ray::LearnerRank.step() (pid=7, ip=192.0.2.2, actor_id=ab)\n  ...\n{type(cause).__name__}: {cause}"
    )
    return RayTaskError("LearnerRank.step", trace, cause, "ray::LearnerRank.step", 7, "192.0.2.2")


@pytest.mark.parametrize(
    "cause",
    [
        MemoryError("Unable to allocate 8.00 PiB for an array"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_an_allocation_that_fails_in_a_rank(cause):
    kill = memory_kill(failed_task(cause))
    assert kill == MemoryKill("a learner rank", "a failed allocation")


def test_other_failures_are_no_memory_kills():
    assert memory_kill(None) is None
    assert memory_kill(failed_task(ValueError("memory of a king"))) is None
    assert memory_kill(RayActorError(error_msg="its node was drained")) is None


def translated(error: Exception) -> str:
    advice = ["planned were: 9.6 GiB", "to lower it: learning.tokens_per_micro_batch=512 (saves 0.7 GiB)"]
    with (
        pytest.raises(RunError) as told,
        translated_failures(
            "the same command resumes", reached=lambda: " after step 3 was saved", advice=lambda kill: advice
        ),
    ):
        raise error
    return str(told.value)


def test_three_lines_instead_of_rays_report():
    lines = translated(OutOfMemoryError(KILLED)).splitlines()
    assert lines == [
        "out of memory after step 3 was saved: Ray's memory monitor ended a learner rank, which used 14.4 "
        "GiB when 22.4 of the 23.5 GiB of node 192.0.2.2 were in use",
        "planned were: 9.6 GiB",
        "to lower it: learning.tokens_per_micro_batch=512 (saves 0.7 GiB); then the same command resumes",
    ]


def test_a_pool_that_gives_up_after_kills_by_the_kernel():
    died = RayActorError(error_msg=DIED)
    error = PoolError(f"workers of the rollout pool died 11 times (limit 10); the last error: {died}")
    error.__cause__ = died
    lines = translated(error).splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("SIGKILL, most often the kernel's where memory runs out, ended an engine")


def test_without_a_plan_the_settings_are_named():
    named = r"to lower it: a smaller learning\.tokens_per_micro_batch"
    with pytest.raises(RunError, match=named), translated_failures("again"):
        raise OutOfMemoryError(KILLED)


def test_another_death_keeps_rays_words():
    with pytest.raises(RunError, match="Its log is in"), translated_failures("again"):
        raise RayActorError(error_msg="it died")


REAL_KILL = '''
import os
from orchestrator.cluster.machine import main_memory

memory = main_memory()
used = memory.total - memory.available
os.environ["RAY_memory_usage_threshold"] = str((used + 2**30) / memory.total)
os.environ["RAY_memory_monitor_refresh_ms"] = "100"

import numpy as np
import ray

from orchestrator.pools.failures import translated_failures
from orchestrator.pools.ranks import call_ranks


class LearnerRank:
    """A rank that takes 64 MiB at a time. A fake: the kill is real, the model would only be slower."""

    def ping(self):
        return 0

    def step(self):
        taken = []
        while True:
            taken.append(np.ones(2**23))


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ranks = [ray.remote(LearnerRank).options(num_cpus=0).remote() for _ in range(2)]
call_ranks(ranks, "ping")
with translated_failures("the same command resumes"):
    ray.get(ranks[0].ping.remote())
    call_ranks(ranks[1:], "step")
'''


@pytest.mark.long
def test_a_real_kill_by_rays_memory_monitor():
    """In a process and a Ray of its own, whose monitor allows 1 GiB more than is in use now."""
    ended = subprocess.run(
        [sys.executable, "-c", REAL_KILL], capture_output=True, text=True, timeout=120, check=False
    )
    told = ended.stderr.split("RunError: ")[-1].strip().splitlines()
    assert len(told) == 2, ended.stderr[-3000:]
    assert re.fullmatch(
        r"out of memory: Ray's memory monitor ended learner rank 0, which used [\d.]+ GiB when [\d.]+ of the "
        r"[\d.]+ GiB of node [\d.]+ were in use",
        told[0],
    )
    assert told[1].endswith("; then the same command resumes")
