"""A training run from its configuration to its summary: prepare, claim its folder, start or resume, train, clean up."""

import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import ObjectLostError, RayActorError, RayError

from actors.verification import load_verifier
from orchestrator.cluster.bundles import bundles_for
from orchestrator.cluster.nodes import connect, planned_nodes
from orchestrator.config.schema import changed_settings, dump_config
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError, RunError, RunStopped
from orchestrator.pools.failures import LOGS
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.files import claimed, write_atomically
from orchestrator.storage.journal import Ending, forget
from orchestrator.storage.remote import RemoteStorage, place_of
from orchestrator.terminal import RunProgress
from orchestrator.training.context import SweepRole
from orchestrator.training.preparation import Prepared, prepare
from orchestrator.training.stopping import Stop, StopRequested

if TYPE_CHECKING:
    from orchestrator.pools.training import Pools
    from orchestrator.training.loop import Trainer

MAY_CHANGE = (
    "run.dir", "run.remote", "run.steps", "run.eval_every", "run.save_every", "run.save_rollouts_every", "run.keep_checkpoints",
    "tracking.", "rollout.num_engines", "rollout.cpus", "rollout.gpus", "rollout.resources", "rollout.colocate", "rollout.tensor_parallel",
    "rollout.kv_cache_gib", "rollout.sync_chunk_mib", "rollout.engine_args", "verification.num_workers", "verification.cpus",
    "verification.resources", "verification.timeout_s", "learning.cpus_per_rank", "learning.resources",
    "learning.tokens_per_micro_batch", "learning.gradient_checkpointing", "learning.attention",
)  # fmt: skip
"""Settings that a resumed run may have changed: where and how fast it runs, and what it keeps, but not what it learns."""

TRIAL_PATIENCE_S = 60.0
"""How long a trial waits for the process of a killed sweep to let go of its folder."""


@dataclass(frozen=True)
class Outcome:
    """What `train` did: the summary, and whether the run had been finished before."""

    summary: dict[str, Any]
    already_finished: bool


def train(config: RunConfig, progress: RunProgress | None = None, role: SweepRole | None = None) -> Outcome:
    """Train, or go on training, the run that `config` names.

    Args:
        progress: Where the run is shown; the terminal unless given.
        role: What the run is to the sweep that it belongs to.

    Raises:
        ConfigError, DataError: Before anything is started.
        RunError: The run had started and cannot go on; the same call continues from its last checkpoint.
    """
    checkpoints = Checkpoints(config.folder, config.run.keep_checkpoints)
    _refuse_other_settings(config)
    remote = RemoteStorage(config.run.remote, config.run.name) if config.run.remote else None
    if remote is not None:
        _fetch_newer(config, checkpoints, remote)
    newest = checkpoints.newest()
    if newest and (summary := _summary_of_finished(config, newest[1])):
        from orchestrator.tracking.tracker import deliver_leftovers

        with claimed(config.folder, TRIAL_PATIENCE_S if role else 0.0):
            say = progress.say_plainly if progress else print
            deliver_leftovers(config, say, role.tags if role else {}, finished=True)
            if remote is not None:
                remote.upload_records(config.folder)
        return Outcome(summary, already_finished=True)
    if newest and newest[1].num_ranks != config.learning.num_ranks:
        raise ConfigError(
            f"learning.num_ranks={config.learning.num_ranks}, but {newest[0]} was written by {newest[1].num_ranks} rank(s), and ZeRO-3 "
            "checkpoints load at that number only: use it, or start another run.name from this run's export/"
        )
    load_verifier(config.verification.verifier)
    prepared = prepare(config)
    if role is None:
        bundles_for(config, planned_nodes())

    config.folder.mkdir(parents=True, exist_ok=True)
    with claimed(config.folder, TRIAL_PATIENCE_S if role else 0.0):
        outcome = _train(config, checkpoints, newest, prepared, progress, role)
        if remote is not None:
            remote.upload_records(config.folder)
            if not (config.folder / "export" / "config.json").exists():  # rank 0 was on another node
                remote.fetch(f"{place_of(outcome.summary['steps'])}/export", config.folder / "export")
        return outcome


def _train(
    config: RunConfig,
    checkpoints: Checkpoints,
    newest: tuple[Path, TrainingState] | None,
    prepared: Prepared,
    progress: RunProgress | None,
    role: SweepRole | None,
) -> Outcome:
    # Seconds of imports that no refusal has to wait for.
    from orchestrator.pools.training import Pools
    from orchestrator.tracking.tracker import Tracker
    from orchestrator.training.live_metrics import LiveMetrics
    from orchestrator.training.loop import Trainer

    progress = progress or RunProgress(config.run.name, config.run.steps, newest[1].step if newest else 0)
    if newest:
        checkpoints.link_export()
    else:
        _forget_other_attempt(config)
    tracker = Tracker(config, progress.say_plainly, role.tags if role else {})
    for problems, name in ((prepared.train, "training"), (prepared.eval, "held-out")):
        if problems is not None and problems.dropped:
            progress.say(
                f"{problems.dropped} {name} problems are longer than rollout.max_prompt_tokens and were left out"
            )
    pools: Pools | None = None
    ending: Ending = "FAILED"
    try:
        write_atomically(config.folder / "config.yaml", dump_config(config))
        with progress:
            progress.say(
                "starting the pools: rollout (vLLM), verification (math-verify), learning (DeepSpeed ZeRO-3)"
            )
            nodes = connect()
            stop = Stop(progress.say)
            with stop.on_signals() if role is None else contextlib.nullcontext():
                with stop.interruptible():
                    bundles = role.bundles if role else bundles_for(config, nodes)
                    pools = Pools(config, prepared.tokens, bundles, in_trial=role is not None)
                with LiveMetrics(config, pools) as live:
                    trainer = Trainer(config, prepared, pools, tracker, progress, live, stop, role)
                    trainer.rewind()
                    summary = _run_to_the_end(trainer, pools, progress)
            ending = "FINISHED"
    except StopRequested:
        ending = "KILLED"
        saved = _last_step(checkpoints)
        raise RunStopped(
            f"stopped as asked; step {saved} of {config.run.steps} is saved, and the same command continues"
        ) from None
    except (KeyboardInterrupt, SystemExit):  # asked before the run could be, or more than once
        ending = "KILLED"
        raise
    except ConfigError as error:
        raise RunError(str(error)) from error
    except RayError as error:
        raise RunError(
            f"{str(error).strip()}\nAn actor failed after step {_last_step(checkpoints)} was saved. Its log is in {LOGS}; the same "
            "command continues from the last checkpoint."
        ) from error
    except OSError as error:
        raise RunError(
            f"{error}. Mend that (is the disk full?); the same command continues from the last checkpoint."
        ) from error
    finally:
        try:
            if pools is not None:
                pools.stop()
        finally:
            with contextlib.ExitStack() as first_failure:
                if ending != "FINISHED":
                    first_failure.enter_context(
                        contextlib.suppress(RunError)
                    )  # of two failures, the first is to be told
                tracker.finish(ending)
    return Outcome(summary, already_finished=False)


def _run_to_the_end(trainer: "Trainer", pools: "Pools", progress: RunProgress) -> dict[str, Any]:
    """Train; when a learner rank dies, or what it was to learn from, replace the ranks and go back to the newest checkpoint.

    The other pools mend themselves.
    """
    failure: RayError | None = None
    while True:
        try:
            if failure is not None:
                with trainer.stop.interruptible():  # there is nothing to save
                    pools.restart_learners(failure)
                    trainer.rewind()
            return trainer.run()
        except (RayActorError, ObjectLostError) as error:
            failure = error
            what = (
                "a learner rank died"
                if isinstance(error, RayActorError)
                else "a node died with what was needed"
            )
            progress.say(f"{what} after step {trainer.step}: starting the ranks again")


def _forget_other_attempt(config: RunConfig) -> None:
    """Delete what an attempt has logged that ended before its first checkpoint, unless it had these very settings."""
    saved = config.folder / "config.yaml"
    if not saved.exists():
        return
    with contextlib.suppress(ConfigError):  # the attempt was another version's
        if not changed_settings(saved, config):
            return
    forget(config.folder)


def _fetch_newer(config: RunConfig, checkpoints: Checkpoints, remote: RemoteStorage) -> None:
    """Bring the run's folder to the newest checkpoint of `run.remote`, if that is newer: ranks fetch their shards themselves.

    Raises:
        ConfigError: It cannot be read or written, or holds a run with other settings.
    """
    try:
        remote.try_out()
        state = remote.newest()
        if state is None:
            return
        if (settings := remote.read("config.yaml")) is not None:
            with tempfile.TemporaryDirectory() as folder:
                saved = Path(folder) / "config.yaml"
                saved.write_bytes(settings)
                _refuse_changed(remote.shown, saved, config)
        config.folder.mkdir(parents=True, exist_ok=True)
        with claimed(config.folder):
            here = checkpoints.newest()
            if here is None or (here[1].step <= state.step and here[1].text() != state.text()):
                remote.fetch_records(config.folder)
                checkpoints.save(
                    state, lambda folder: remote.fetch(f"{place_of(state.step)}/export", folder / "export")
                )
    except RunError as error:
        raise ConfigError(str(error)) from error


def _last_step(checkpoints: Checkpoints) -> int:
    newest = checkpoints.newest()
    return newest[1].step if newest else 0


def _summary_of_finished(config: RunConfig, state: TrainingState) -> dict[str, Any] | None:
    path = config.folder / "summary.json"
    if state.step < config.run.steps or not path.exists():
        return None
    summary = json.loads(path.read_text())
    return summary if summary["steps"] >= config.run.steps else None


def _refuse_other_settings(config: RunConfig) -> None:
    """A run's folder belongs to one set of settings: others would train something that no configuration describes."""
    path: Path = config.folder / "config.yaml"
    if not path.exists() or not any((config.folder / kept).exists() for kept in ("checkpoints", "export")):
        return
    _refuse_changed(str(config.folder), path, config)


def _refuse_changed(place: str, saved: Path, config: RunConfig) -> None:
    changes = changed_settings(saved, config, f"{place}/{saved.name}")
    changed = [f"{key}: {change}" for key, change in changes.items() if not key.startswith(MAY_CHANGE)]
    if changed:
        raise ConfigError(
            f"{place} holds a run with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Choose another run.name, restore these settings, or delete the folder."
        )
