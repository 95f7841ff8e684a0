"""The cold start: supervised training on worked solutions, in Ray Train's workers as DeepSpeed ZeRO-3 ranks.

In: an `SFTConfig`. Out: a Hugging Face folder `export/` that `laser train` can start from, an MLflow run and
`summary.json`.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from ray.train import FailureConfig, LoggingConfig, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as RayTrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from rich.markup import escape

from actors.cold_start import ForwardReports, train_rank
from orchestrator.cluster.nodes import Resources, connect, planned_nodes
from orchestrator.config.cold_start import SFTConfig
from orchestrator.config.schema import dump_config
from orchestrator.data.demonstrations import Demonstrations, load_demonstrations
from orchestrator.data.eos import turn_end_warning
from orchestrator.data.tokens import absolute_path, chat_settings, tokens_of
from orchestrator.errors import ConfigError, RunError
from orchestrator.pools.failures import translated_failures
from orchestrator.storage.checksums import seal_export
from orchestrator.storage.files import claimed, write_atomically
from orchestrator.storage.folders import make_folder, refuse_unusable_folder
from orchestrator.storage.journal import Ending, forget
from orchestrator.storage.run_log import logged_to
from orchestrator.terminal import RunProgress
from orchestrator.tracking.tracker import Tracker
from orchestrator.training.divergence import Diverged
from orchestrator.training.run import Outcome, read_summary, refuse_changed_settings

STORAGE = "ray_train"
"""Ray Train's own folder within the run's."""

AGAIN = "the same command starts the cold start again, from the beginning"
"""What a failed or stopped cold start tells its user, since it is not resumed."""


def fine_tune(config: SFTConfig, progress: RunProgress | None = None) -> Outcome:
    """Run the cold start that `config` names, unless it is finished. A failed one starts again from step 1.

    Args:
        progress: Shows the steps; the terminal's own when None.

    Raises:
        ConfigError, DataError: Settings or data are wrong, and nothing was started.
        RunError: The training failed or was interrupted.
    """
    refuse_unusable_folder(config.folder, "run.dir or run.name")
    if summary := _summary_of_finished(config):
        return Outcome(summary, already_finished=True)
    tokens = tokens_of(config)
    demonstrations = load_demonstrations(config.data, tokens)
    if len(demonstrations) < config.learning.batch_size:
        raise ConfigError(
            f"learning.batch_size={config.learning.batch_size}, but {config.data.train} holds only "
            f"{len(demonstrations)} samples of at most {config.data.max_tokens} tokens: use at most that many"
        )
    _refuse_what_cannot_fit(config, planned_nodes())

    make_folder(config.folder, "run.dir or run.name")
    with claimed(config.folder), logged_to(config.folder):
        if summary := _summary_of_finished(config):  # another process has finished it in the meantime
            return Outcome(summary, already_finished=True)
        warning = turn_end_warning(tokens.chat, tokens.eos_tokens)
        return Outcome(_train(config, demonstrations, progress, warning), already_finished=False)


def _train(
    config: SFTConfig,
    demonstrations: Demonstrations,
    progress: RunProgress | None,
    warning: str | None = None,
) -> dict[str, Any]:
    """Train in the folder that this process holds, and return the summary."""
    # Ray Train would resume the state of an earlier attempt.
    shutil.rmtree(config.folder / STORAGE, ignore_errors=True)
    forget(config.folder)
    write_atomically(config.folder / "config.yaml", dump_config(config))
    progress = progress or RunProgress(config.run.name, config.run.steps, 0)
    tracker = Tracker(config, progress.say_plainly)
    ending: Ending = "FAILED"
    try:
        with translated_failures(AGAIN), progress:
            if warning is not None:
                progress.say(f"[yellow]warning[/yellow] {escape(warning)}")
            if demonstrations.dropped:
                progress.say(
                    f"{demonstrations.dropped} worked solutions are longer than data.max_tokens and left out"
                )
            progress.say(f"cold start on {len(demonstrations)} worked solutions: starting Ray Train")
            summary = _fit(config, demonstrations, tracker, progress)
            ending = "FINISHED"
    except KeyboardInterrupt:
        ending = "KILLED"
        raise RunError(f"interrupted; {AGAIN}") from None
    except SystemExit:  # Ray's answer to SIGTERM
        ending = "KILLED"
        raise
    finally:
        tracker.finish(ending)
    return summary


def _fit(
    config: SFTConfig, demonstrations: Demonstrations, tracker: Tracker, progress: RunProgress
) -> dict[str, Any]:
    """Train, show and log each step, and write the summary."""
    started = time.monotonic()
    losses: list[float] = []
    tokens, parameters, in_a_row = 0, 0, 0
    for report in _reports(config, demonstrations):
        parameters = report.get("parameters", 0)
        for values in report["steps"]:
            losses.append(values["loss/total"])
            tokens += int(values["sft/tokens"])
            tracker.log_step(len(losses), values)
            progress.step(len(losses), values)
            in_a_row = in_a_row + 1 if values["learn/skipped_steps"] else 0
            _refuse_to_diverge(config, tracker, progress, len(losses), in_a_row)
        if not report.get("weights_finite", True):
            raise Diverged(
                f"after step {len(losses)} the weights are not finite; nothing is exported. The likely cause "
                f"is learning.lr={config.learning.lr:g}: lower it"
            )
    shutil.rmtree(config.folder / "export", ignore_errors=True)
    seal_export(config.folder / STORAGE / "export", {})
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
    return summary


def _refuse_to_diverge(
    config: SFTConfig, tracker: Tracker, progress: RunProgress, step: int, in_a_row: int
) -> None:
    """Note a step whose update was skipped; the last of too many in a row ends the cold start."""
    if in_a_row == 0:
        return
    note = f"step {step}: the update is skipped on all ranks, since the loss or the gradients are not finite"
    progress.say(f"[yellow]warning[/yellow] {note}")
    tracker.log_note(step, note)
    if in_a_row >= config.learning.max_skipped_steps:
        learning = config.learning
        raise Diverged(
            f"{in_a_row} steps in a row up to step {step} had no update, since the loss or the gradients are "
            f"not finite. The likely cause is learning.lr={learning.lr:g}, or "
            f"learning.dtype={learning.dtype}: lower the rate, or train in float32"
        )


def _reports(config: SFTConfig, demonstrations: Demonstrations) -> Iterator[dict[str, Any]]:
    """Start the workers and yield their reports as they arrive.

    Raises:
        RunError: A worker failed.
    """
    connect()
    reports = Queue(actor_options={"num_cpus": 0})
    trainer = _trainer(config, ray.put(demonstrations), reports)
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # the main thread raises it
            failures.append(error)

    # The main thread stays free for reports and Ctrl-C. A daemon, so that an error here can end the process.
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
    """Ray Train's trainer; `demonstrations` is an ObjectRef."""
    settings = config.learning
    eos_tokens = tokens_of(config).eos_tokens if config.model.eos_tokens else ()
    resolved = {"path": absolute_path(config.model.path), "eos_tokens": eos_tokens}
    config = config.model_copy(update={"model": config.model.model_copy(update=resolved)})
    threads = str(max(1, int(settings.cpus_per_rank)))
    return TorchTrainer(
        train_rank,
        train_loop_config={
            "config": config,
            "demonstrations": demonstrations,
            "chat_template": chat_settings(config.data).template,
        },
        torch_config=TorchConfig(backend="nccl" if settings.gpus_per_rank else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.num_ranks,
            use_gpu=settings.gpus_per_rank > 0,
            resources_per_worker=_rank_resources(config),
        ),
        run_config=RayTrainRunConfig(
            name=STORAGE,
            storage_path=str(config.folder.resolve()),
            failure_config=FailureConfig(max_failures=0),
            callbacks=[ForwardReports(reports)],
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
        ),
    )


def _rank_resources(config: SFTConfig) -> Resources:
    gpus = config.learning.gpus_per_rank
    return {"CPU": config.learning.cpus_per_rank} | ({"GPU": gpus} if gpus else {})


def _refuse_what_cannot_fit(config: SFTConfig, nodes: list[Resources]) -> None:
    rank = _rank_resources(config)
    room = sum(
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in rank.items()) for node in nodes
    )
    if room < config.learning.num_ranks:
        raise ConfigError(
            f"learning.num_ranks={config.learning.num_ranks}, but the cluster has room for {room} rank(s) of "
            f"{rank}: lower it or learning.cpus_per_rank (fractions share a CPU), or name a larger cluster "
            "in RAY_ADDRESS"
        )


def _summary_of_finished(config: SFTConfig) -> dict[str, Any] | None:
    """The summary of a finished cold start; None where there is none yet.

    Raises:
        ConfigError: The folder holds a run of `laser train`, or a cold start with other settings.
    """
    path = config.folder / "summary.json"
    if (config.folder / "checkpoints").exists():
        raise ConfigError(f"{config.folder} holds a run of `laser train`: choose another run.name")
    if not path.exists():
        return None
    refuse_changed_settings(str(config.folder), config.folder / "config.yaml", config)
    return read_summary(path, "loss")
