"""Replay a stored step: losses and gradients of a model on rollouts that a run kept as parquet.

In: a rollout file and a configuration, whose `model.path` may be any checkpoint's `export`. Out: the sums of
the step, without an optimiser step. It shows what happened in a step, and what another alpha or beta_v would
do.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from orchestrator.algorithm.self_reward import self_reward_score
from orchestrator.cluster.nodes import connect
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import tokens_of
from orchestrator.errors import ConfigError, DataError, RunError
from orchestrator.messages.batches import StepSums
from orchestrator.messages.problems import Problem
from orchestrator.messages.trajectories import read_groups
from orchestrator.messages.verdicts import UNJUDGED, Status, Verdict
from orchestrator.pools.collect import Batch, CheckedGroup, to_batch
from orchestrator.pools.events import run_while
from orchestrator.pools.ranks import RankCall, learner_settings, start_ranks, values_of
from orchestrator.pools.watch import Watch
from orchestrator.storage.card import SelfRewardCard
from orchestrator.training.train_batch import estimate_advantages, make_train_batch


@dataclass(frozen=True)
class Replay:
    """A training step that was computed again from its stored batch."""

    step: int
    samples: int
    sums: StepSums
    gradients: dict[str, np.ndarray]
    """Of the total loss, by parameter name."""

    def described(self, model: str) -> str:
        """The step in words."""
        sums = self.sums
        return (
            f"step {self.step}: {self.samples} samples, {sums.tokens} tokens, under {model}\n"
            f"  loss/total {sums.total_loss:.6f}  loss/policy {sums.policy_loss:.6f}  "
            f"loss/self_reward {sums.self_reward_loss:.6f}\n"
            f"  gradient norm {self.grad_norm:.6f}  "
            f"largest |engine - learner| log-prob {sums.mismatch_max:.6f}"
        )

    @property
    def grad_norm(self) -> float:
        return float(
            np.sqrt(
                sum(
                    float(np.square(gradient, dtype=np.float64).sum()) for gradient in self.gradients.values()
                )
            )
        )


def load_batch(path: Path) -> tuple[Batch, int]:
    """The batch of a rollout file, its trajectories put into the object store, and its step.

    Raises:
        DataError: There is no such file, or no run wrote it.
    """
    name = re.fullmatch(r"step-(\d+)\.parquet", path.name)
    if name is None or not path.is_file():
        raise DataError(
            f"{path}: is no rollout file; a run writes them as rollouts/step-NNNNNN.parquet "
            "(run.save_rollouts_every)"
        )
    packed, table = read_groups(path)
    rows = table.select(
        ["group", "problem_id", "problem", "reference", "status", "reward", "answer", "response"]
    ).to_pylist()
    groups = []
    for number, trajectories in enumerate(packed):
        mine = [row for row in rows if row["group"] == number]
        problem = Problem.from_text(*(mine[0][name] for name in ("problem_id", "problem", "reference")))
        verdicts = [_verdict_of(row) for row in mine]
        texts = ray.put([row["response"] for row in mine])
        groups.append(CheckedGroup(problem, ray.put(trajectories), texts, trajectories.summary(), verdicts))
    return to_batch(groups), int(name[1])


def _verdict_of(row: Mapping[str, Any]) -> Verdict:
    status = Status(row["status"])
    return Verdict(status, row["answer"], reward=None if status in UNJUDGED else row["reward"])


def replay(config: RunConfig, path: Path) -> Replay:
    """Losses and gradients of `config.model.path` on the stored step, by one learner rank.

    Raises:
        ConfigError: The configuration asks for several ranks or mini-batches, or its c_ref is not known.
        DataError: As `load_batch`.
        RunError: The rank failed.
    """
    settings = config.learning
    if settings.mini_batches > 1 or settings.num_ranks > 1:
        raise ConfigError(
            "replay uses one rank and one mini-batch: set learning.num_ranks=1 and learning.mini_batches=1"
        )
    tokens = tokens_of(config)
    c_ref = _c_ref(config, path)
    connect()
    batch, step = load_batch(path)
    scores = None
    if config.self_reward.token is not None:
        scores = self_reward_score(torch.from_numpy(batch.z_logprobs), c_ref, config.loss.beta_v).numpy()
    advantages = estimate_advantages(config, batch, scores, step)
    train_batch = make_train_batch(
        config, batch, advantages, np.full(len(batch.rewards), c_ref, np.float32), step
    )
    ranks: list[Any] = []

    def spawn(cls: type, rank: int, *arguments: Any) -> Any:
        ranks.append(
            ray.remote(cls)
            .options(num_cpus=settings.cpus_per_rank, num_gpus=settings.gpus_per_rank)
            .remote(*arguments)
        )
        return ranks[-1]

    try:
        start_ranks(learner_settings(config, tokens.z_token), spawn)
        refs = [rank.gradients.remote(train_batch) for rank in ranks]
        run_while(refs, RankCall(ranks, "gradients", refs, Watch()))
        [(sums, gradients)] = values_of(ranks, refs)
    except RayError as error:
        raise RunError(f"the learner rank failed: {str(error).strip()}") from error
    finally:
        for rank in ranks:
            ray.kill(rank)
    return Replay(step, len(batch.rewards), sums, gradients)


def _c_ref(config: RunConfig, path: Path) -> float:
    if config.self_reward.token is None:
        return 0.0
    if isinstance(config.loss.c_ref, float):
        return config.loss.c_ref
    if config.loss.c_ref == "exact":
        raise ConfigError(
            "loss.c_ref=exact needs a reference model, which replay does not run: set a number or calibrate"
        )
    card = path.parent.parent / "export" / "self_reward.json"
    if not card.exists():
        raise ConfigError(
            f"loss.c_ref={config.loss.c_ref}: {card}, which holds the measured value, does not "
            "exist; set a number, such as loss.c_ref=-18.5"
        )
    return SelfRewardCard.read(card).c_ref
