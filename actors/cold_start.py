"""Supervised training on worked solutions: what runs in Ray Train's workers, each a DeepSpeed ZeRO-3 rank, and in its controller.

In: an `SFTConfig` and `Demonstrations` in the object store. Out: reports of the metrics of each step, and at the end a Hugging Face
folder as Ray Train's checkpoint `export`.
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
from jaxtyping import Bool, Int
from ray.train import Checkpoint, UserCallback
from ray.util.queue import Queue
from torch import Tensor

from actors import zero3
from orchestrator.algorithm.micro_batches import plan_micro_batches
from orchestrator.config.cold_start import SFTConfig
from orchestrator.data.demonstrations import Demonstrations, length_batches
from orchestrator.data.tokens import load_tokens

REPORT_SECONDS = 5.0
"""Ray Train collects one report every 2 s and lets a rank wait that sends more: steps are reported together."""

StepMetrics = dict[str, float]


def learning_rate(config: SFTConfig, step: int) -> float:
    """Linear warm-up to the peak, then a cosine to `final_lr_share` of it at the last step. Steps count from 1."""
    settings, steps = config.learning, config.run.steps
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    done = (step - settings.warmup_steps) / (steps - settings.warmup_steps)
    return settings.lr * (
        settings.final_lr_share + (1 - settings.final_lr_share) * (1 + math.cos(math.pi * done)) / 2
    )


def make_rows(
    samples: Sequence[tuple[np.ndarray, int]], pad_token: int, device: torch.device
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"], Int[Tensor, "targets"]]:
    """Arguments of `LogProbModel.forward`: input ids, positions to read and their targets.

    A sample of n tokens, p of them its prompt, is read at positions p-1 to n-2, whose targets are its tokens p to n-1.
    """
    width = max(len(tokens) for tokens, _ in samples) - 1  # the last token is a target only
    input_ids = torch.full((len(samples), width), pad_token)
    read = torch.zeros(len(samples), width, dtype=torch.bool)
    for row, (tokens, prompt_length) in enumerate(samples):
        inputs = len(tokens) - 1
        input_ids[row, :inputs] = torch.from_numpy(tokens[:-1].astype(np.int64))
        read[row, prompt_length - 1 : inputs] = True
    targets = torch.from_numpy(
        np.concatenate([tokens[prompt_length:] for tokens, prompt_length in samples]).astype(np.int64)
    )
    return input_ids.to(device), read.to(device), targets.to(device)


def share_of_loss(
    model: torch.nn.Module,
    samples: Sequence[tuple[np.ndarray, int]],
    total_targets: int,
    pad_token: int,
    device: torch.device,
) -> Tensor:
    """What these samples add to their batch's loss, the mean negative log-prob over its `total_targets`; shares of all ranks sum to it.

    Without samples two tokens run through the model for a loss of 0: other ranks gather weights together with this one.
    """
    rows = make_rows(samples or [(np.zeros(2, np.int32), 1)], pad_token, device)
    logprobs, _ = model(*rows)
    return -logprobs.sum() / total_targets if samples else logprobs.sum() * 0.0


class Rank:
    """One ZeRO-3 rank of the cold start; its process group is Ray Train's. Every method is a collective."""

    def __init__(self, config: SFTConfig, demonstrations: Demonstrations, rank: int, world_size: int) -> None:
        self.config, self.demonstrations, self.rank, self.world_size = (
            config,
            demonstrations,
            rank,
            world_size,
        )
        settings = config.learning
        on_gpu = settings.gpus_per_rank > 0
        self.device = torch.device("cuda" if on_gpu else "cpu")
        if not on_gpu:
            torch.set_num_threads(max(1, int(settings.cpus_per_rank)))
        zero3.start_deepspeed(on_gpu)
        import deepspeed

        ds_config = zero3.zero3_config(
            dtype=settings.dtype,
            grad_clip=settings.grad_clip,
            offload="none",
            on_gpu=on_gpu,
            extra=settings.deepspeed,
        )
        self.tokenizer = load_tokens(config.model.path, None).tokenizer
        self.pad_token = self.tokenizer.pad_token_id or 0
        self.model = zero3.load_model(
            config.model.path,
            ds_config,
            dtype=settings.dtype,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=on_gpu,
        )
        self.engine, *_ = deepspeed.initialize(model=self.model, optimizer=self.optimizer, config=ds_config)
        self.engine.train()

    def step(self, step: int, batch: list[int]) -> StepMetrics:
        """One optimiser step on a batch, of which this rank takes its share. Returns the whole batch's metrics."""
        started = time.perf_counter()
        lr = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total = self.demonstrations.target_count(batch)
        lengths = (self.demonstrations.lengths[batch] - 1).tolist()  # the last token is a target only
        micro_batches = plan_micro_batches(
            lengths, self.world_size, self.config.learning.tokens_per_micro_batch
        )[self.rank]
        loss_sum = torch.zeros((), device=self.device)
        for number, micro in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
            samples = [self.demonstrations.sample(batch[index]) for index in micro]
            loss = share_of_loss(self.engine, samples, total, self.pad_token, self.device)
            # ZeRO averages gradients over ranks; the loss is divided by the targets of all of them already.
            self.engine.backward(loss * self.world_size)
            self.engine.step()
            loss_sum += loss.detach()
        torch.distributed.all_reduce(loss_sum)
        return {
            "loss/total": loss_sum.item(),
            "sft/lr": lr,
            "sft/tokens": total,
            "policy/grad_norm": float(self.engine.get_global_grad_norm()),
            "time/step": time.perf_counter() - started,
        }

    def export(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder (rank 0 writes)."""
        zero3.export_model(self.model, folder, self.tokenizer, is_sender=self.rank == 0)


def train_rank(job: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs: the steps, reported several at a time, and the export as Ray Train's checkpoint."""
    config: SFTConfig = job["config"]
    demonstrations: Demonstrations = ray.get(job["demonstrations"])
    context = ray.train.get_context()
    rank = Rank(config, demonstrations, context.get_world_rank(), context.get_world_size())
    batches = length_batches(demonstrations.lengths, config.learning.batch_size, config.run.seed)
    done: list[StepMetrics] = []
    reported = time.monotonic()
    for step, batch in enumerate(islice(batches, config.run.steps), 1):
        done.append(rank.step(step, batch))
        if _agree(time.monotonic() - reported >= REPORT_SECONDS, rank.device):
            ray.train.report({"steps": done})
            done, reported = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rank.export(Path(folder))
        is_writer = context.get_world_rank() == 0
        ray.train.report(
            {"steps": done, "parameters": zero3.parameter_count(rank.model)},
            checkpoint=Checkpoint.from_directory(folder) if is_writer else None,
            checkpoint_dir_name="export",
        )


def _agree(mine: bool, device: torch.device) -> bool:
    """Whether it is so on any rank. Ray Train's report is a collective: ranks must make as many, whatever their clocks say."""
    answer = torch.tensor(float(mine), device=device)
    torch.distributed.all_reduce(answer)
    return answer.item() > 0


class ForwardReports(UserCallback):
    """Runs in Ray Train's controller: hands each report to the driver while training goes on."""

    def __init__(self, reports: Queue) -> None:
        self.reports = reports

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        self.reports.put(metrics[0])
