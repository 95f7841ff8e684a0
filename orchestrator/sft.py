"""The cold start: supervised training on worked solutions, with Ray Train's workers as DeepSpeed ZeRO-3 ranks.

In: an `SFTConfig`. Out: a Hugging Face folder `export/` to start `laser train` from, an MLflow run and `summary.json`.
"""

import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Bool, Int
from ray.train import Checkpoint, FailureConfig, LoggingConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train import RunConfig as RayTrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from torch import Tensor

from actors import zero3
from orchestrator.algorithm.micro_batches import plan_micro_batches
from orchestrator.cluster import Resources, connect, local_nodes
from orchestrator.config import SFTConfig, changed_settings, dump_config
from orchestrator.demonstrations import Demonstrations, length_batches, load_demonstrations
from orchestrator.errors import ConfigError, RunError
from orchestrator.preparation import load_tokens, looks_local
from orchestrator.progress import RunProgress
from orchestrator.run import Outcome
from orchestrator.tracking import Tracker

REPORT_SECONDS = 5.0
"""Ray Train collects one report every 2 s and lets a rank wait that sends more: steps are reported together."""

STORAGE = "ray_train"
"""Ray Train's own folder within the run's."""

MAY_CHANGE = ("run.dir", "tracking.", "learning.cpus_per_rank")
"""Settings that do not make it another run."""

StepMetrics = dict[str, float]


def train(config: SFTConfig, progress: RunProgress | None = None) -> Outcome:
    """Run the cold start that `config` names. It is not resumed: after a failure the same call starts it anew.

    Raises:
        ConfigError, DataError: Before anything is started.
        RunError: The training had started and failed, or was interrupted.
    """
    if summary := _summary_of_finished(config):
        return Outcome(summary, already_finished=True)
    demonstrations = load_demonstrations(config.data, load_tokens(config.model.path, config.self_reward.token))
    if len(demonstrations) < config.learning.batch_size:
        raise ConfigError(
            f"learning.batch_size={config.learning.batch_size}, but {config.data.train} holds only {len(demonstrations)} samples of at "
            f"most {config.data.max_tokens} tokens: use at most that many"
        )
    _refuse_what_cannot_fit(config, connect() if os.environ.get("RAY_ADDRESS") else local_nodes())

    config.folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(config.folder / STORAGE, ignore_errors=True)  # an earlier attempt's: Ray Train would take it for one to continue
    (config.folder / "config.yaml").write_text(dump_config(config))
    tracker = Tracker(config, None)
    progress = progress or RunProgress(config.run.name, config.run.steps, 0)
    complete = False
    try:
        with progress:
            if demonstrations.dropped:
                progress.say(f"{demonstrations.dropped} worked solutions are longer than data.max_tokens and were left out")
            progress.say(f"cold start on {len(demonstrations)} worked solutions: starting Ray Train with DeepSpeed ZeRO-3")
            summary = _fit(config, demonstrations, tracker, progress)
            complete = True
    except KeyboardInterrupt:
        raise RunError("interrupted; a cold start is not resumed, the same command starts it anew") from None
    finally:
        if not complete:
            tracker.finish(failed=True)
    return Outcome(summary, already_finished=False)


def learning_rate(config: SFTConfig, step: int) -> float:
    """Linear warm-up to the peak, then a cosine to `final_lr_share` of it at the last step. Steps count from 1."""
    settings, steps = config.learning, config.run.steps
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    done = (step - settings.warmup_steps) / (steps - settings.warmup_steps)
    return settings.lr * (settings.final_lr_share + (1 - settings.final_lr_share) * (1 + math.cos(math.pi * done)) / 2)


def make_rows(
    samples: Sequence[tuple[np.ndarray, int]], pad_token: int, device: torch.device
) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"], Bool[Tensor, "batch time"], Int[Tensor, "targets"]]:
    """Arguments of `LogProbModel.forward`: input ids, attention mask, positions to read and their targets.

    A sample of n tokens, p of them its prompt, is read at positions p-1 to n-2, whose targets are its tokens p to n-1.
    """
    width = max(len(tokens) for tokens, _ in samples) - 1  # the last token is a target only
    input_ids = torch.full((len(samples), width), pad_token)
    attention_mask = torch.zeros(len(samples), width, dtype=torch.long)
    read = torch.zeros(len(samples), width, dtype=torch.bool)
    for row, (tokens, prompt_length) in enumerate(samples):
        inputs = len(tokens) - 1
        input_ids[row, :inputs] = torch.from_numpy(tokens[:-1].astype(np.int64))
        attention_mask[row, :inputs] = 1
        read[row, prompt_length - 1 : inputs] = True
    targets = torch.from_numpy(np.concatenate([tokens[prompt_length:] for tokens, prompt_length in samples]).astype(np.int64))
    return input_ids.to(device), attention_mask.to(device), read.to(device), targets.to(device)


def share_of_loss(
    model: torch.nn.Module, samples: Sequence[tuple[np.ndarray, int]], total_targets: int, pad_token: int, device: torch.device
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
        self.config, self.demonstrations, self.rank, self.world_size = config, demonstrations, rank, world_size
        settings = config.learning
        on_gpu = settings.gpus_per_rank > 0
        self.device = torch.device("cuda" if on_gpu else "cpu")
        if not on_gpu:
            torch.set_num_threads(max(1, int(settings.cpus_per_rank)))
        zero3.start_deepspeed(on_gpu)
        import deepspeed

        ds_config = zero3.zero3_config(
            dtype=settings.dtype, grad_clip=settings.grad_clip, offload="none", on_gpu=on_gpu, extra=settings.deepspeed
        )
        self.tokenizer = load_tokens(config.model.path, None).tokenizer
        self.pad_token = self.tokenizer.pad_token_id or 0
        self.model = zero3.load_model(
            config.model.path, ds_config, dtype=settings.dtype, gradient_checkpointing=settings.gradient_checkpointing
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
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
        micro_batches = plan_micro_batches(lengths, self.world_size, self.config.learning.tokens_per_micro_batch)[self.rank]
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


class _ForwardReports(UserCallback):
    """Runs in Ray Train's controller: hands each report to the driver while training goes on."""

    def __init__(self, reports: Queue) -> None:
        self.reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        self.reports.put(metrics[0])


def _fit(config: SFTConfig, demonstrations: Demonstrations, tracker: Tracker, progress: RunProgress) -> dict[str, Any]:
    """Train, showing and logging each step, and write the summary."""
    started = time.monotonic()
    losses: list[float] = []
    tokens, parameters = 0, 0
    for report in _reports(config, demonstrations):
        parameters = report.get("parameters", 0)
        for values in report["steps"]:
            losses.append(values["loss/total"])
            tokens += int(values["sft/tokens"])
            tracker.log_step(len(losses), values)
            progress.step(len(losses), values)
    shutil.rmtree(config.folder / "export", ignore_errors=True)
    (config.folder / STORAGE / "export").rename(config.folder / "export")
    shutil.rmtree(config.folder / STORAGE)
    summary = {
        "steps": len(losses),
        "loss": round(float(np.mean(losses[-20:])), 5),
        "samples": len(demonstrations),
        "dropped": demonstrations.dropped,
        "target_tokens": tokens,
        "parameters": parameters,
        "seconds": round(time.monotonic() - started, 1),
        "mlflow_run_id": tracker.run_id,
    }
    tracker.log_summary(summary)
    tracker.finish()
    path = config.folder / "summary.json"
    path.with_suffix(".partial").write_text(json.dumps(summary, indent=2) + "\n")
    path.with_suffix(".partial").replace(path)
    return summary


def _reports(config: SFTConfig, demonstrations: Demonstrations) -> Iterator[dict[str, Any]]:
    """Start the workers and yield their reports as they come. Raises RunError when a worker fails."""
    connect()
    reports = Queue(actor_options={"num_cpus": 0})
    trainer = _trainer(config, ray.put(demonstrations), reports)
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # handed to the main thread, which raises it
            failures.append(error)

    # In a thread of its own, so that this one sees reports and Ctrl-C; a daemon, so that a failure here ends the process.
    fitting = threading.Thread(target=fit, daemon=True)
    fitting.start()
    while fitting.is_alive() or not reports.empty():
        try:
            yield reports.get(timeout=0.5)
        except Empty:
            continue
    reports.shutdown()
    for error in failures:
        causes = getattr(error, "worker_failures", None) if isinstance(error, TrainingFailedError) else None
        raise RunError(f"Ray Train failed: {next(iter(causes.values())) if causes else error}") from error


def _trainer(config: SFTConfig, demonstrations: Any, reports: Queue) -> TorchTrainer:
    settings = config.learning
    model_path = config.model.path
    if looks_local(model_path):  # workers have a working directory of their own
        model_path = str(Path(model_path).expanduser().resolve())
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": model_path})})
    threads = str(max(1, int(settings.cpus_per_rank)))
    return TorchTrainer(
        train_rank,
        train_loop_config={"config": config, "demonstrations": demonstrations},
        torch_config=TorchConfig(backend="nccl" if settings.gpus_per_rank else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.num_ranks, use_gpu=settings.gpus_per_rank > 0, resources_per_worker=_rank_resources(config)
        ),
        run_config=RayTrainRunConfig(
            name=STORAGE,
            storage_path=str(config.folder.resolve()),
            failure_config=FailureConfig(max_failures=0),
            callbacks=[_ForwardReports(reports)],
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
        ),
    )


def _rank_resources(config: SFTConfig) -> Resources:
    gpus = config.learning.gpus_per_rank
    return {"CPU": config.learning.cpus_per_rank} | ({"GPU": gpus} if gpus else {})


def _refuse_what_cannot_fit(config: SFTConfig, nodes: list[Resources]) -> None:
    rank = _rank_resources(config)
    room = sum(min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in rank.items()) for node in nodes)
    if room < config.learning.num_ranks:
        raise ConfigError(
            f"learning.num_ranks={config.learning.num_ranks}, but the cluster has room for {room} rank(s) of {rank}: lower it or "
            "learning.cpus_per_rank (fractions share a CPU), or name a larger cluster in RAY_ADDRESS"
        )


def _summary_of_finished(config: SFTConfig) -> dict[str, Any] | None:
    """The summary of a run that is finished. Raises ConfigError when its folder holds a run with other settings."""
    path = config.folder / "summary.json"
    if (config.folder / "checkpoints").exists():
        raise ConfigError(f"{config.folder} holds a run of `laser train`: choose another run.name")
    if not path.exists():
        return None
    changed = [
        f"{key}: {change}"
        for key, change in changed_settings(config.folder / "config.yaml", config).items()
        if not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{config.folder} holds a finished cold start with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Choose another run.name, restore these settings, or delete the folder."
        )
    return json.loads(path.read_text())
