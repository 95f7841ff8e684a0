"""Supervised training on worked solutions: the code of Ray Train's workers, each a DeepSpeed ZeRO-3 rank.

In: an `SFTConfig`, and `Demonstrations` in the object store. Out: reports of each step's metrics, and at the
end a Hugging Face folder as Ray Train's checkpoint `export`.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Float, Int32
from ray.train import Checkpoint, UserCallback
from ray.util.queue import Queue
from torch import Tensor

from actors import process_group, zero3
from actors.rows import demonstration_rows
from orchestrator.algorithm.micro_batches import plan_micro_batches
from orchestrator.cluster.waits import fetched
from orchestrator.config.cold_start import SFTConfig
from orchestrator.data.demonstrations import Demonstrations, length_batches
from orchestrator.messages.batches import FAULTS, PolicySettings

REPORT_SECONDS = 5.0
"""A report holds several steps: Ray Train collects one every 2 s, and blocks a rank that sends more."""

StepMetrics = dict[str, float]


def learning_rate(config: SFTConfig, step: int) -> float:
    """The rate of a step, from 1: linear warm-up to the peak, then a cosine to `final_lr_share` of it."""
    settings, steps = config.learning, config.run.steps
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    done = (step - settings.warmup_steps) / (steps - settings.warmup_steps)
    return settings.lr * (
        settings.final_lr_share + (1 - settings.final_lr_share) * (1 + math.cos(math.pi * done)) / 2
    )


def policy_settings(config: SFTConfig, chat_template: str | None = None) -> PolicySettings:
    """A cold start's settings that its ranks load and update the model with."""
    learning = config.learning
    return PolicySettings(
        model_path=config.model.path,
        on_gpu=learning.gpus_per_rank > 0,
        threads=max(1, int(learning.cpus_per_rank)),
        dtype=learning.dtype,
        lr=learning.lr,
        betas=learning.betas,
        weight_decay=learning.weight_decay,
        grad_clip=learning.grad_clip,
        gradient_checkpointing=learning.gradient_checkpointing,
        deepspeed=learning.deepspeed,
        eos_tokens=tuple(map(int, config.model.eos_tokens)),  # the driver has replaced texts by ids
        chat_template=chat_template,
    )


def share_of_loss(
    model: torch.nn.Module,
    samples: Sequence[tuple[Int32[np.ndarray, "tokens"], int]],
    total_targets: int,
    pad_token: int,
    device: torch.device,
) -> Float[Tensor, ""]:
    """These samples' share of their batch's loss, the mean negative log-prob of its targets.

    The shares of all ranks sum to the loss. Without samples two tokens run through the model for a loss of 0,
    since other ranks gather weights together with this one.

    Args:
        samples: Each sample's tokens, and how many of them are its prompt.
        total_targets: Targets of the whole batch.
    """
    rows = demonstration_rows(samples or [(np.zeros(2, np.int32), 1)], pad_token, device)
    logprobs, _ = model(*rows)
    return -logprobs.sum() / total_targets if samples else logprobs.sum() * 0.0


class SupervisedRank:
    """One ZeRO-3 rank of the cold start, in Ray Train's process group. Every method is a collective."""

    def __init__(
        self,
        config: SFTConfig,
        demonstrations: Demonstrations,
        rank: int,
        world_size: int,
        chat_template: str | None = None,
    ) -> None:
        self.config = config
        self.demonstrations = demonstrations
        self.rank = rank
        self.world_size = world_size
        settings = policy_settings(config, chat_template)
        process_group.start_deepspeed(settings.on_gpu)
        self.learner = zero3.Learner(settings)

    def step(self, step: int, batch: list[int]) -> StepMetrics:
        """Take an optimiser step on a batch, of which this rank takes its share.

        Args:
            step: The step's number, from 1.
            batch: Numbers of the batch's samples.

        Returns:
            The whole batch's metrics.
        """
        started = time.perf_counter()
        learner = self.learner
        lr = learning_rate(self.config, step)
        learner.set_learning_rate(lr)
        total = self.demonstrations.target_count(batch)
        lengths = (self.demonstrations.lengths[batch] - 1).tolist()  # the last token is a target only
        micro_batches = plan_micro_batches(
            lengths, self.world_size, self.config.learning.tokens_per_micro_batch
        )[self.rank]
        loss_sum = torch.zeros((), device=learner.device)
        for number, micro in enumerate(micro_batches):
            samples = [self.demonstrations.sample(batch[index]) for index in micro]
            loss = share_of_loss(learner.engine, samples, total, learner.pad_token, learner.device)
            learner.backward(loss, last=number == len(micro_batches) - 1)
            loss_sum += loss.detach()
        torch.distributed.all_reduce(loss_sum)
        faults = torch.tensor([name == "the loss" for name in FAULTS], device=learner.device)
        taken = not learner.update(faults & ~torch.isfinite(loss_sum))
        return {
            "loss/total": loss_sum.item(),
            "sft/lr": lr,
            "sft/tokens": total,
            "policy/grad_norm": learner.grad_norm if taken else math.inf,
            "learn/skipped_steps": float(not taken),
            "time/step": time.perf_counter() - started,
        }


def train_rank(job: dict[str, Any]) -> None:
    """Run one of Ray Train's workers: all steps, reported several at a time, and the export as a checkpoint.

    Args:
        job: `config`, the `SFTConfig`; `demonstrations`, an ObjectRef to `Demonstrations`; and
            `chat_template`, that of the exported model, or None for its own.
    """
    config: SFTConfig = job["config"]
    demonstrations: Demonstrations = fetched(job["demonstrations"], "the demonstrations")
    context = ray.train.get_context()
    place = context.get_world_rank(), context.get_world_size()
    rank = SupervisedRank(config, demonstrations, *place, job["chat_template"])
    batches = length_batches(demonstrations.lengths, config.learning.batch_size, config.run.seed)
    done: list[StepMetrics] = []
    reported = time.monotonic()
    for step, batch in enumerate(islice(batches, config.run.steps), 1):
        done.append(rank.step(step, batch))
        if _any_rank(time.monotonic() - reported >= REPORT_SECONDS, rank.learner.device):
            ray.train.report({"steps": done})
            done, reported = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        is_writer = rank.rank == 0
        rank.learner.export(Path(folder), is_sender=is_writer)
        ray.train.report(
            {
                "steps": done,
                "parameters": zero3.parameter_count(rank.learner.model),
                "weights_finite": rank.learner.weights_finite(),
            },
            checkpoint=Checkpoint.from_directory(folder) if is_writer else None,
            checkpoint_dir_name="export",
        )


def _any_rank(mine: bool, device: torch.device) -> bool:
    """Whether `mine` is true on any rank. A report is a collective, so ranks must agree on its time."""
    answer = torch.tensor(float(mine), device=device)
    torch.distributed.all_reduce(answer)
    return answer.item() > 0


class ForwardReports(UserCallback):
    """Passes each report to the driver while training runs. Ray Train's controller calls it."""

    def __init__(self, reports: Queue) -> None:
        self.reports = reports

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        self.reports.put(metrics[0])
