"""The driver alone: its CPU time and memory with up to 512 simulated engines, verifiers and ranks.

    python -m benchmarks.scale [--engines 8 64 512] [--steps 200] [--json FILE]

A simulation, not a cluster. Real: Ray, the pools, the wait for events, the batches, advantages and the plan
of micro-batches, in one driver process. Simulated: the workers, which are coroutines on four host processes.
They sleep for as long as real ones would work, and return groups with real lengths and short arrays: tokens
would stay on the nodes that made them, and the driver never sees them. Sleeps are compressed (`--compress`),
because 200 steps with answers of 8k tokens take 14 hours. The driver's share of a core is its CPU time over
the time that the steps would take uncompressed.

The model is 7B. A rank's tokens/s and its time to pack weights are measured (docs/gpu.md); the engine's time
for a token, the load of new weights and the time of a check are assumptions, given below.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import ray
from ray import ObjectRef

from orchestrator.config.schema import validate
from orchestrator.config.training import RunConfig
from orchestrator.messages.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.trajectories import Generated, GroupSummary, pack
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import Group
from orchestrator.pools.events import run_while
from orchestrator.pools.pool import Pool
from orchestrator.pools.ranks import RankCall, values_of
from orchestrator.pools.start import ENGINE_TASKS, VERIFIER_TASKS
from orchestrator.pools.watch import Watch
from orchestrator.training.batches import batches
from orchestrator.training.session import Clock
from orchestrator.training.train_batch import estimate_advantages, make_train_batch

# Workers cannot import a module that runs as `__main__`.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

HOSTS = 4
SAMPLES = 16
"""Of a group; each engine gets one group a step."""
MAX_TOKENS = 8192
TOKEN_S = 0.025
"""Assumed: an engine's decode step for 16 to 32 long sequences."""
RANK_TOKENS_PER_S = 7588
"""Measured, responses of 6000 to 7680 tokens."""
PACK_S = 0.34
"""Measured."""
LOAD_S = 2.0
"""Assumed: 14 GB over the network, and their load."""
CHECK_S = 0.005
"""Assumed, for one answer."""
COMPRESS = {8: 1600.0, 64: 800.0, 512: 400.0}
MIB = 2**20


class Host:
    """Many workers of a pool, as coroutines.

    Args:
        compress: By how much every sleep is shorter than the work that it stands for.
        ranks: Among which the tokens of a step are shared.
    """

    def __init__(self, compress: float, ranks: int) -> None:
        self.compress = compress
        self.ranks = ranks
        self.version = -1

    async def ping(self) -> bool:
        return True

    async def generate(self, request: GroupRequest) -> tuple[list[int], list[str], GroupSummary]:
        draw = random.Random(request.seed)
        lengths = [min(MAX_TOKENS, int(draw.lognormvariate(8.3, 0.6))) for _ in range(request.num_samples)]
        version = self.version
        await asyncio.sleep(max(lengths) * TOKEN_S / self.compress)
        samples = [
            Generated([1], [-1.0], length < MAX_TOKENS, -9.0, (version, self.version)) for length in lengths
        ]
        summary = pack(request.prompt_ids, samples).summary()
        return [], ["text"], GroupSummary(512, np.array(lengths, np.int32), *_rest(summary))

    async def verify(self, texts: Any, finished: Sequence[bool], problem: Problem) -> list[Verdict]:
        await asyncio.sleep(CHECK_S * len(finished) / self.compress)
        return [
            Verdict(Status.CORRECT if number % 2 else Status.WRONG, "1") for number in range(len(finished))
        ]

    async def load_weights(self, version: int, chunks: Any) -> None:
        await asyncio.sleep(LOAD_S / self.compress)
        self.version = version

    async def step(self, tokens: int) -> None:
        await asyncio.sleep(tokens / RANK_TOKENS_PER_S / self.ranks / self.compress)

    async def publish(self) -> list[str]:
        await asyncio.sleep(PACK_S / self.compress)
        return ["chunk"]


def _rest(summary: GroupSummary) -> tuple[Any, ...]:
    return summary.finished, summary.z_logprobs, summary.versions


class Worker:
    """A handle on one worker of a host: what a pool takes for an actor."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def __getattr__(self, method: str) -> Any:
        return getattr(self.host, method)


class Session:
    """The parts of a session that `batches` uses."""

    def __init__(self, config: RunConfig, rollouts: Pool, verifiers: Pool) -> None:
        self.config = config
        self.pools = SimpleNamespace(rollouts=rollouts, verifiers=verifiers)
        self.clock = Clock()
        self.live = SimpleNamespace(checked=lambda verdicts: None)
        self.problems = SimpleNamespace(draw=self._draw)
        self.step = 0

    def steps(self) -> range:
        return range(1, self.config.run.steps + 1)

    def generate(self, work: Any) -> Any:
        return work()

    def _draw(self, step: int) -> list[Group]:
        """New problems, as groups."""
        rollout = self.config.rollout
        first = step * rollout.prompts_per_step
        return [
            Group(Problem.from_text(str(number), "problem", "1"), GroupRequest([1] * 512, SAMPLES, number))
            for number in range(first, first + rollout.prompts_per_step)
        ]


@dataclass(frozen=True)
class Result:
    """One number of engines. Times are uncompressed."""

    engines: int
    steps: int
    step_s: float
    trajectories_per_s: float
    cpu_ms_per_trajectory: float
    driver_share: float
    """Of one core."""
    compressed_share: float
    """Of one core, while sleeps were compressed: near 1 the driver would have held the steps up."""
    engines_at_full_core: float
    memory_mib: dict[str, list[float]]
    """Of the driver, of Ray's processes and of the hosts: after half of the steps, and at the end."""


def settings(engines: int, steps: int) -> RunConfig:
    """The run: as many groups a step, verifiers and a quarter as many ranks as there are engines."""
    sections = {
        "run": {"name": "scale", "steps": steps},
        "model": {"path": "7B"},
        "data": {"train": "none.jsonl"},
        "rollout": {
            "samples_per_prompt": SAMPLES,
            "prompts_per_step": engines,
            "max_response_tokens": MAX_TOKENS,
            "max_staleness": 1,
        },
        "learning": {"num_ranks": max(1, engines // 4), "tokens_per_micro_batch": 16384},
        "self_reward": {"token": "<|z|>"},
    }
    return validate(sections, RunConfig, "scale")


def measure(engines: int, steps: int, compress: float) -> Result:
    """Run so many steps with so many engines."""
    config = settings(engines, steps)
    ranks = config.learning.num_ranks
    spawn = ray.remote(Host).options(num_cpus=0, max_concurrency=100_000)
    hosts = [spawn.remote(compress, ranks) for _ in range(HOSTS)]
    ray.get([host.ping.remote() for host in hosts])

    def worker(index: int) -> Any:
        return Worker(hosts[index % HOSTS])

    rollouts = Pool("rollout", worker, engines, ENGINE_TASKS)
    verifiers = Pool("verification", worker, engines, VERIFIER_TASKS)
    learners: Any = [worker(index) for index in range(ranks)]
    for pool in (rollouts, verifiers):
        pool.wait_ready()
    session = Session(config, rollouts, verifiers)
    watch = Watch(together=True)

    def on_ranks(method: str, *arguments: Any) -> list[Any]:
        refs: list[ObjectRef] = [getattr(rank, method).remote(*arguments) for rank in learners]
        run_while(refs, RankCall(learners, method, refs, watch), rollouts, verifiers)
        return values_of(learners, refs)

    rollouts.broadcast("load_weights", 0, [])
    driver = psutil.Process()
    memory: dict[str, list[float]] = {"driver": [], "Ray": [], "hosts": []}
    started, used = time.perf_counter(), _cpu_seconds(driver)
    for step, batch in batches(session, ahead=1):  # type: ignore[arg-type]
        advantages = estimate_advantages(config, batch, None, step)
        c_ref = np.zeros(len(advantages), np.float32)
        train_batch = make_train_batch(config, batch, advantages, c_ref, step)
        ray.put(train_batch)  # as for real ranks; what the simulated ones need of it is a number
        on_ranks("step", sum(mini.total_tokens for mini in train_batch.mini_batches))
        on_ranks("publish")
        rollouts.broadcast("load_weights", step, [])
        session.clock.stop("step")
        session.step = step
        if step in (max(1, steps // 2), steps):
            for name, used_now in _memory(driver).items():
                memory[name].append(round(used_now / MIB, 1))
    wall, cpu = time.perf_counter() - started, _cpu_seconds(driver) - used
    for host in hosts:
        ray.kill(host)
    trajectories = steps * engines * SAMPLES
    return Result(
        engines=engines,
        steps=steps,
        step_s=wall * compress / steps,
        trajectories_per_s=trajectories / (wall * compress),
        cpu_ms_per_trajectory=1000 * cpu / trajectories,
        driver_share=cpu / (wall * compress),
        compressed_share=cpu / wall,
        engines_at_full_core=engines * wall * compress / cpu,
        memory_mib=memory,
    )


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _memory(driver: psutil.Process) -> dict[str, float]:
    """Resident bytes by kind of process, without what the object store shares."""
    found = {"driver": float(_private(driver)), "Ray": 0.0, "hosts": 0.0}
    for process in driver.children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            kind = "hosts" if title.startswith("ray::Host") else "Ray"
            found[kind] += _private(process)
        except psutil.Error:
            continue
    return found


def _private(process: psutil.Process) -> int:
    memory = process.memory_info()
    return memory.rss - memory.shared


def show(results: Sequence[Result]) -> None:
    """Print the table, and the figures as a line of JSON."""
    print("\n| engines | step | trajectories/s | driver: ms/trajectory | of a core | full core at |")
    print("| --- | --- | --- | --- | --- | --- |")
    for result in results:
        print(
            f"| {result.engines} | {result.step_s:.0f} s | {result.trajectories_per_s:.1f} "
            f"| {result.cpu_ms_per_trajectory:.2f} | {result.driver_share:.2%} "
            f"| {result.engines_at_full_core:,.0f} engines |"
        )
    print(f"\n| engines | MiB of | after {results[0].steps // 2} steps | after {results[0].steps} |")
    print("| --- | --- | --- | --- |")
    for result in results:
        for name, (before, after) in result.memory_mib.items():
            print(f"| {result.engines} | {name} | {before:.0f} | {after:.0f} |")
    print(json.dumps([asdict(result) for result in results]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", type=int, default=list(COMPRESS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compress", type=float, help="the same for all sizes, in place of each size's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures to this file")
    options = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=512 * MIB, log_to_driver=False)
    results = [
        measure(engines, options.steps, options.compress or COMPRESS.get(engines, COMPRESS[512]))
        for engines in options.engines
    ]
    show(results)
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps([asdict(result) for result in results]) + "\n")


if __name__ == "__main__":
    main()
