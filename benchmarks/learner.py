r"""The learner alone on CPU: one rank's optimiser step on the work of `benchmarks.train`, ways side by side.

    python -m benchmarks.learner [--ways default bfloat16 ...] [--plain] [--rounds 5] [--json FILE]
    python -m benchmarks.learner --list

Each way is the real `LearnerRank` without the object store, in a process of its own, with the default
settings but for what the way changes. The processes take turns, one step each, so that a busy machine slows
all of them alike. Printed are the medians of the seconds of a step, of the core-seconds that it used, which a
busy machine changes less, and of the rounds' ratios to the first way; and how far its log-probs and gradients
are from the first way's.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import work

LR = work.LEARNING_RATE
C_REF = -11.0
SETUP_S, STEP_S = 180.0, 120.0


@dataclass(frozen=True)
class Way:
    """What differs from the default settings."""

    meaning: str
    dtype: str = "float32"
    tokens: int = 4096
    """Of a micro-batch, padding included."""
    threads: int = 1
    attention: str = "sdpa"
    deepspeed: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    compiled: bool = False
    plain: bool = False
    """Without DeepSpeed: transformers and autograd, and no optimiser step."""


PERSISTENT = {"zero_optimization": {"stage3_param_persistence_threshold": 10**9}}
WAYS: dict[str, Way] = {
    "default": Way("float32, 4096 tokens a micro-batch, 1 thread"),
    "plain": Way("the same model without DeepSpeed: forward and backward pass alone", plain=True),
    "bfloat16": Way("learning.dtype: bfloat16", dtype="bfloat16"),
    "threads2": Way("2 threads in the rank", threads=2),
    "tokens1024": Way("1024 tokens a micro-batch", tokens=1024),
    "tokens2048": Way("2048 tokens a micro-batch", tokens=2048),
    "tokens8192": Way("8192 tokens a micro-batch", tokens=8192),
    "tokens16384": Way("16384 tokens a micro-batch", tokens=16384),
    "eager": Way("learning.attention: eager", attention="eager"),
    "persistent": Way("no parameter is freed after its use", deepspeed=PERSISTENT),
    "compiled": Way("torch.compile of each layer", compiled=True),
    "products16": Way(
        "float32, but oneDNN's products in bfloat16",
        environment={"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"},
    ),
    "pages": Way("memory in transparent huge pages", environment={"THP_MEM_ALLOC_ENABLE": "1"}),
}


def made_groups(seed: int = 0) -> list[Any]:
    """16 groups of 8 responses of 20 to 128 random tokens; one in eight is as long as it may be."""
    from orchestrator.messages.trajectories import Trajectories

    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(work.PROMPTS):
        lengths = rng.integers(20, work.RESPONSE_TOKENS, work.SAMPLES)
        finished = np.arange(work.SAMPLES) % 8 != 7
        lengths[~finished] = work.RESPONSE_TOKENS
        tokens = int(lengths.sum())
        groups.append(
            Trajectories(
                prompt_ids=rng.integers(4, 256, rng.integers(34, 44), dtype=np.int32),
                response_ids=rng.integers(4, 256, tokens, dtype=np.int32),
                logprobs=np.full(tokens, -1.0, np.float32),
                lengths=lengths.astype(np.int32),
                finished=finished,
                z_logprobs=np.where(finished, C_REF, np.nan).astype(np.float32),
                versions=np.zeros(tokens, np.int32),
            )
        )
    return groups


def made_batch(groups: Sequence[Any], tokens: int) -> Any:
    """One mini-batch of random rewards, for one rank."""
    from orchestrator.algorithm.micro_batches import plan_micro_batches
    from orchestrator.messages.batches import MiniBatch, TrainBatch

    samples = work.PROMPTS * work.SAMPLES
    lengths = np.concatenate([len(group.prompt_ids) + group.lengths for group in groups])
    rng = np.random.default_rng(1)
    return TrainBatch(
        step=1,
        groups=groups,
        samples_per_group=work.SAMPLES,
        advantages=rng.standard_normal(samples).astype(np.float32),
        rewards=rng.integers(0, 2, samples).astype(np.float32),
        class_weights=np.ones(samples, np.float32),
        c_ref=np.full(samples, C_REF, np.float32),
        mini_batches=[
            MiniBatch(
                plan_micro_batches(lengths.tolist(), 1, tokens),
                sum(int(group.lengths.sum()) for group in groups),
                sum(int(group.finished.sum()) for group in groups),
            )
        ],
        alpha=0.0,
    )


class PlainLearner:
    """transformers' model with the project's head, without DeepSpeed."""

    def __init__(self, way: Way, model: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from actors.zero3 import LogProbModel

        self.torch = torch
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, way.dtype), attn_implementation=way.attention
        )
        self.model = LogProbModel(loaded)

    def step(self, batch: Any) -> None:
        """Forward and backward passes."""
        from actors.rows import rollout_rows

        self.model.zero_grad()
        samples = [group.sample(index) for group in batch.groups for index in range(len(group))]
        for micro in batch.mini_batches[0].plan[0]:
            rows = rollout_rows([samples[index] for index in micro], None, 0, self.torch.device("cpu"))
            logprobs, _ = self.model(rows.input_ids, rows.read, rows.targets)
            (
                logprobs[rows.is_token] * self.torch.from_numpy(batch.advantages[micro])[rows.sample]
            ).sum().backward()


def _rank(way: Way, model: Path) -> Any:
    from actors import process_group
    from actors.learning import LearnerRank
    from orchestrator.algorithm.loss import LossSettings
    from orchestrator.messages.batches import LearnerSettings, PolicySettings

    class LocalRank(LearnerRank):
        @staticmethod
        def _fetch_groups(refs: Sequence[Any], numbers: Sequence[int]) -> dict[int, Any]:
            return {number: refs[number] for number in numbers}

    policy = PolicySettings(
        model_path=str(model),
        on_gpu=False,
        threads=way.threads,
        dtype=way.dtype,
        lr=LR,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        grad_clip=1.0,
        gradient_checkpointing=False,
        attention=way.attention,
        deepspeed=way.deepspeed,
    )
    loss = LossSettings(alpha=0.0, beta_v=0.1, kl_coef=0.0, kl_estimator="k3", clip_low=0.2, clip_high=0.2)
    settings = LearnerSettings(
        policy=policy,
        num_ranks=1,
        seed=0,
        warmup_steps=0,
        loss=loss,
        z_token=None,
        needs_reference=False,
        run_name="learner",
        remote=None,
    )
    rank = LocalRank(settings, 0)
    rank.store = process_group.open_store("127.0.0.1")
    rank.setup("127.0.0.1", rank.store.port)
    return rank


def _serve(way: Way, model: Path, turn: Connection) -> None:
    """In a way's process: set up, say so, then one step at each request."""
    os.environ |= {"OMP_NUM_THREADS": str(way.threads), "CUDA_VISIBLE_DEVICES": ""} | way.environment
    import torch

    torch.set_num_threads(way.threads)
    learner = PlainLearner(way, model) if way.plain else _rank(way, model)
    if way.compiled:
        layers = (learner.model if way.plain else learner.learner.model).model.base_model.layers
        for layer in layers:
            layer.compile(dynamic=True)
    batch = made_batch(made_groups(), way.tokens)
    errors = {} if way.plain else _figures(learner, batch)
    turn.send(errors)
    while turn.recv():
        started, used = time.perf_counter(), time.process_time()
        learner.step(batch)
        turn.send((time.perf_counter() - started, time.process_time() - used))


def _figures(rank: Any, batch: Any) -> dict[str, Any]:
    """Loss and gradients before the first step."""
    sums, gradients = rank.gradients(batch)
    return {"loss": sums.policy_loss, "gradients": gradients, "entropy": sums.entropy / sums.tokens}


def measure(ways: dict[str, Way], rounds: int, model: Path) -> list[dict[str, Any]]:
    """Rows of the table, one a way."""
    names = list(ways)
    spawn = multiprocessing.get_context("spawn")
    turns: dict[str, Connection] = {}
    processes = []
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        ours, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=_serve, args=(ways[name], model, theirs), daemon=True))
        processes[-1].start()
        turns[name] = ours
        figures[name] = _answer(ours, SETUP_S, name)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    used: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            turns[name].send(True)
            wall, cores = _answer(turns[name], STEP_S, name)
            if number:  # the first round is a warm-up
                seconds[name].append(wall)
                used[name].append(cores)
    for turn, process in zip(turns.values(), processes, strict=True):
        turn.send(False)
        process.join()
    first = names[0]
    return [
        {
            "way": name,
            "meaning": ways[name].meaning,
            "step_s": statistics.median(seconds[name]),
            "core_s": statistics.median(used[name]),
            "ratio": _median_ratio(seconds[name], seconds[first]),
            "core_ratio": _median_ratio(used[name], used[first]),
            "loss_error": _loss_error(figures[name], figures[first]),
            "gradient_error": _gradient_error(figures[name], figures[first]),
        }
        for name in names
    ]


def _answer(turn: Connection, seconds: float, name: str) -> Any:
    if not turn.poll(seconds):
        raise TimeoutError(f"{name}: no answer in {seconds:g} s")
    return turn.recv()


def _median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def _loss_error(one: dict[str, Any], first: dict[str, Any]) -> float | None:
    return abs(one["loss"] - first["loss"]) if one and first else None


def _gradient_error(one: dict[str, Any], first: dict[str, Any]) -> float | None:
    """||difference|| / ||gradient||, over all parameters together."""
    if not one or not first:
        return None
    names = list(first["gradients"])
    apart = sum(
        float(np.square(one["gradients"][name].astype(np.float64) - first["gradients"][name]).sum())
        for name in names
    )
    whole = sum(float(np.square(first["gradients"][name].astype(np.float64)).sum()) for name in names)
    return (apart / whole) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["default", "plain", "bfloat16"])
    parser.add_argument("--plain", action="store_true", help="all ways without DeepSpeed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--list", action="store_true", help="name the ways")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures to this file")
    options = parser.parse_args()
    if options.list:
        for name, way in WAYS.items():
            print(f"{name:16} {way.meaning}")
        return
    with tempfile.TemporaryDirectory(prefix="laser-learner-") as folder:
        model = work.make_work(Path(folder)) / "model"
        ways = {name: replace(WAYS[name], plain=options.plain or WAYS[name].plain) for name in options.ways}
        rows = measure(ways, options.rounds, model)
    print("| way | step s | core-seconds | step ratio | core ratio | loss error | gradient error |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        errors = ["-" if row[key] is None else f"{row[key]:.1e}" for key in ("loss_error", "gradient_error")]
        print(
            f"| {row['way']}: {row['meaning']} | {row['step_s']:.2f} | {row['core_s']:.2f} "
            f"| {row['ratio']:.2f} | {row['core_ratio']:.2f} | {' | '.join(errors)} |"
        )
    line = json.dumps({"benchmark": "learner", "rounds": options.rounds, "ways": rows})
    print(line)
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
