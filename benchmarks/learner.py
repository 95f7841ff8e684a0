r"""The learner alone on CPU: one rank's optimiser step on the work of `benchmarks.train`, ways side by side.

    python -m benchmarks.learner [--ways default bfloat16 ...] [--plain] [--rounds 5] [--json FILE]
    python -m benchmarks.learner --list

Each way is the real `LearnerRank` without the object store, in a process of its own, with the default
settings but for what the way changes. The processes take turns, one step each, so that a busy machine slows
all of them alike. Printed are the medians of the seconds of a step, of the core-seconds that it used, which a
busy machine changes less, and of the rounds' ratios to the first way; and how far its gradients are from the
first way's.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
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
    tokens: int = work.MICRO_BATCH_TOKENS
    """Of a micro-batch, padding included."""
    ranks: int = 1
    threads: int = 1
    """Of each rank."""
    attention: str = "sdpa"
    deepspeed: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    compiled: bool = False
    plain: bool = False
    """Without DeepSpeed: transformers and autograd, and no optimiser step."""
    shared: bool = False
    """learning.share_prefixes: the prompt of a group's samples is computed once."""


PERSISTENT = {"zero_optimization": {"stage3_param_persistence_threshold": 10**9}}
WAYS: dict[str, Way] = {
    "default": Way(f"float32, {work.MICRO_BATCH_TOKENS} tokens a micro-batch, 1 thread"),
    "plain": Way("the same model without DeepSpeed: forward and backward pass alone", plain=True),
    "bfloat16": Way("learning.dtype: bfloat16", dtype="bfloat16"),
    "threads2": Way("one rank, 2 threads", threads=2),
    "ranks2": Way("2 ranks, 1 thread each", ranks=2),
    "ranks2-persistent": Way("2 ranks; no parameter is freed after its use", ranks=2, deepspeed=PERSISTENT),
    "tokens1024": Way("1024 tokens a micro-batch", tokens=1024),
    "tokens4096": Way("4096 tokens a micro-batch", tokens=4096),
    "tokens8192": Way("8192 tokens a micro-batch", tokens=8192),
    "tokens16384": Way("16384 tokens a micro-batch", tokens=16384),
    "eager": Way("learning.attention: eager", attention="eager"),
    "persistent": Way("no parameter is freed after its use", deepspeed=PERSISTENT),
    "shared": Way("learning.share_prefixes: a group's prompt once", shared=True),
    "ranks2-shared": Way("2 ranks, and a group's prompt once", ranks=2, shared=True),
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


def made_batch(groups: Sequence[Any], tokens: int, ranks: int = 1, shared: bool = False) -> Any:
    """One mini-batch of random rewards."""
    from orchestrator.algorithm.micro_batches import plan_group_micro_batches, plan_micro_batches
    from orchestrator.messages.batches import MiniBatch, TrainBatch

    samples = work.PROMPTS * work.SAMPLES
    lengths = np.concatenate([len(group.prompt_ids) + group.lengths for group in groups])
    if shared:
        numbers = np.repeat(np.arange(work.PROMPTS), work.SAMPLES).tolist()
        prompts = np.repeat([len(group.prompt_ids) for group in groups], work.SAMPLES).tolist()
        plan = plan_group_micro_batches(lengths.tolist(), prompts, numbers, ranks, tokens)
    else:
        plan = plan_micro_batches(lengths.tolist(), ranks, tokens)
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
                plan,
                sum(int(group.lengths.sum()) for group in groups),
                sum(int(group.finished.sum()) for group in groups),
            )
        ],
        alpha=0.0,
    )


class PlainLearner:
    """transformers' model with the project's head, without DeepSpeed: forward and backward passes alone."""

    def __init__(self, way: Way, model: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from actors.zero3 import LogProbModel

        self.way = way
        self.model = LogProbModel(
            AutoModelForCausalLM.from_pretrained(
                model, dtype=getattr(torch, way.dtype), attn_implementation=way.attention
            )
        )

    def step(self, batch: Any) -> None:
        """Add up the gradients of a batch."""
        import torch

        from actors.rows import rollout_rows

        self.model.zero_grad()
        samples = [group.sample(index) for group in batch.groups for index in range(len(group))]
        for micro in batch.mini_batches[0].plan[0]:
            rows = rollout_rows([samples[index] for index in micro], None, 0, torch.device("cpu"))
            logprobs, _ = self.model(rows.input_ids, rows.read, rows.targets)
            advantages = torch.from_numpy(batch.advantages[micro])[rows.sample]
            losses = logprobs[rows.is_token] * advantages
            (-losses.sum() / batch.mini_batches[0].total_tokens).backward()

    def gradients(self, batch: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The gradients of a batch, by parameter, and 0 in place of its loss."""
        self.step(batch)
        named = self.model.model.named_parameters()
        return 0.0, {name: weight.grad.float().numpy().copy() for name, weight in named}


def _rank(way: Way, model: Path, number: int, turn: Connection) -> Any:
    """A rank of a way. Rank 0 names the port at which the ranks meet; each of them is told it."""
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
        shares_prefixes=way.shared,
        deepspeed=way.deepspeed,
    )
    loss = LossSettings(alpha=0.0, beta_v=0.1, kl_coef=0.0, kl_estimator="k3", clip_low=0.2, clip_high=0.2)
    settings = LearnerSettings(
        policy=policy,
        num_ranks=way.ranks,
        seed=0,
        warmup_steps=0,
        loss=loss,
        z_token=None,
        needs_reference=False,
        run_name="learner",
        remote=None,
    )
    rank = LocalRank(settings, number)
    if number == 0:
        rank.store = process_group.open_store("127.0.0.1")
        turn.send(rank.store.port)
    rank.setup("127.0.0.1", turn.recv())
    return rank


def _serve(way: Way, model: Path, number: int, turn: Connection) -> None:
    """In the process of a way's rank: set up, send the gradients, then one step at each request."""
    os.environ |= {"OMP_NUM_THREADS": str(way.threads), "CUDA_VISIBLE_DEVICES": ""} | way.environment
    import torch

    torch.set_num_threads(way.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # DeepSpeed calls torch by old names, each step
    learner = PlainLearner(way, model) if way.plain else _rank(way, model, number, turn)
    if way.compiled:
        layers = (learner.model if way.plain else learner.learner.model).model.base_model.layers
        for layer in layers:
            layer.compile(dynamic=True)
    batch = made_batch(made_groups(), way.tokens, way.ranks, way.shared)
    turn.send(_gradients(learner, batch))
    while turn.recv():
        started, used = time.perf_counter(), time.process_time()
        learner.step(batch)
        turn.send((time.perf_counter() - started, time.process_time() - used))


class Contender:
    """A way in its processes, one a rank.

    Args:
        model: Folder of the model.
    """

    def __init__(self, name: str, way: Way, model: Path) -> None:
        self.name = name
        self.way = way
        spawn = multiprocessing.get_context("spawn")
        pipes = [spawn.Pipe() for _ in range(way.ranks)]
        self._turns = [ours for ours, _ in pipes]
        self._processes = [
            spawn.Process(target=_serve, args=(way, model, number, theirs), daemon=True)
            for number, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()
        if not way.plain:
            port = self._answer(self._turns[0], SETUP_S)
            self._tell(port)
        self.gradients, *_ = [self._answer(turn, SETUP_S) for turn in self._turns]
        self.seconds: list[float] = []
        self.core_seconds: list[float] = []

    def step(self, counts: bool) -> None:
        """Let all ranks take a step. Without `counts` it is a warm-up."""
        self._tell(True)
        took = [self._answer(turn, STEP_S) for turn in self._turns]
        if counts:
            self.seconds.append(max(seconds for seconds, _ in took))
            self.core_seconds.append(sum(used for _, used in took))

    def close(self) -> None:
        """End the processes."""
        self._tell(False)
        for process in self._processes:
            process.join()

    def _tell(self, message: Any) -> None:
        for turn in self._turns:
            turn.send(message)

    def _answer(self, turn: Connection, seconds: float) -> Any:
        if not turn.poll(seconds):
            raise TimeoutError(f"{self.name}: no answer in {seconds:g} s")
        return turn.recv()


def _gradients(learner: Any, batch: Any) -> dict[str, np.ndarray]:
    """Before the first step. Compiled modules have another name, without which they are the same."""
    _, gradients = learner.gradients(batch)
    return {name.replace("_orig_mod.", ""): gradient for name, gradient in gradients.items()}


def measure(ways: dict[str, Way], rounds: int, model: Path) -> list[dict[str, Any]]:
    """Rows of the table, one a way."""
    contenders = [Contender(name, way, model) for name, way in ways.items()]
    for number in range(rounds + 1):
        for contender in contenders if number % 2 else reversed(contenders):
            contender.step(counts=number > 0)
    for contender in contenders:
        contender.close()
    first = contenders[0]
    return [
        {
            "way": one.name,
            "meaning": one.way.meaning,
            "step_s": statistics.median(one.seconds),
            "core_s": statistics.median(one.core_seconds),
            "ratio": _median_ratio(one.seconds, first.seconds),
            "core_ratio": _median_ratio(one.core_seconds, first.core_seconds),
            "gradient_error": _distance(one.gradients, first.gradients),
        }
        for one in contenders
    ]


def _median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def _distance(one: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> float:
    """||difference|| / ||gradient||, over all parameters together."""
    apart = sum(float(np.square(one[name].astype(np.float64) - first[name]).sum()) for name in first)
    whole = sum(float(np.square(first[name].astype(np.float64)).sum()) for name in first)
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
    print("| way | step s | core-seconds | step ratio | core ratio | gradient error |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['way']}: {row['meaning']} | {row['step_s']:.2f} | {row['core_s']:.2f} "
            f"| {row['ratio']:.2f} | {row['core_ratio']:.2f} | {row['gradient_error']:.1e} |"
        )
    line = json.dumps({"benchmark": "learner", "rounds": options.rounds, "ways": rows})
    print(line)
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
