"""A training run from its configuration to its summary: prepare, claim the folder, train, clean up."""

import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import ObjectLostError, RayActorError, RayError

from actors.verification import load_verifier
from orchestrator.cluster.nodes import connect, planned_nodes
from orchestrator.config.schema import Mark, Section, changed_settings, dump_config, has_mark
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError, RunError, RunStopped
from orchestrator.pools.failures import translated_failures
from orchestrator.storage.checkpoints import Checkpoints
from orchestrator.storage.files import claimed, write_atomically
from orchestrator.storage.folders import make_folder, refuse_unusable_folder
from orchestrator.storage.journal import Ending, forget
from orchestrator.storage.remote import RemoteStorage, place_of
from orchestrator.storage.run_log import logged_to
from orchestrator.terminal import RunProgress
from orchestrator.training.context import RunContext, standalone
from orchestrator.training.preparation import PreparedRun, prepare
from orchestrator.training.stopping import Stop, StopRequested

if TYPE_CHECKING:
    from orchestrator.training.session import Session


@dataclass(frozen=True)
class Outcome:
    """What `train` did: the summary, and whether the run had been finished before."""

    summary: dict[str, Any]
    already_finished: bool


def train(
    config: RunConfig, progress: RunProgress | None = None, context: RunContext | None = None
) -> Outcome:
    """Start the run that `config` names, or resume it.

    Args:
        progress: Where the run is shown; the terminal unless given.
        context: The sweep that the run belongs to; none unless given.

    Raises:
        ConfigError, DataError: Before anything starts.
        RunError: The run had started and failed; the same call resumes from its last checkpoint.
    """
    context = context or standalone()
    refuse_unusable_folder(config.folder, "run.dir or run.name")
    checkpoints = Checkpoints(config.folder, config.run.keep_checkpoints)
    remote = RemoteStorage(config.run.remote, config.run.name) if config.run.remote else None
    _refuse_other_settings(config)
    if remote is not None:
        fetch_newer(config, checkpoints, remote)
    finished = _finished_summary(config, checkpoints) is not None
    prepared = None if finished else _prepare(config, context, checkpoints)
    make_folder(config.folder, "run.dir or run.name")
    with claimed(config.folder, context.lock_patience_s), logged_to(config.folder):
        # The process that held the folder may have trained on, or finished.
        if (summary := _finished_summary(config, checkpoints)) is not None:
            _deliver(config, progress, context)
            outcome = Outcome(summary, already_finished=True)
        else:
            assert prepared is not None  # a finished run stays finished
            _refuse_other_rank_count(config, checkpoints)
            summary = _start_or_resume(config, checkpoints, prepared, progress, context)
            outcome = Outcome(summary, already_finished=False)
        if remote is not None:
            remote.upload_records(config.folder)
            if not (config.folder / "export" / "config.json").exists():  # rank 0 was on another node
                remote.fetch(f"{place_of(summary['steps'])}/export", config.folder / "export")
        return outcome


def _prepare(config: RunConfig, context: RunContext, checkpoints: Checkpoints) -> PreparedRun:
    """Refuse what can be refused before anything starts, and load what the run reads."""
    _refuse_other_rank_count(config, checkpoints)
    load_verifier(config.verification.verifier)
    prepared = prepare(config)
    context.place(config, planned_nodes)
    return prepared


def _start_or_resume(
    config: RunConfig,
    checkpoints: Checkpoints,
    prepared: PreparedRun,
    progress: RunProgress | None,
    context: RunContext,
) -> dict[str, Any]:
    """Train to the last step with trackers, terminal and pools around. The caller holds the folder."""
    # Seconds of imports that no refusal has to wait for.
    from orchestrator.tracking.tracker import Tracker

    newest = checkpoints.newest()
    progress = progress or RunProgress(config.run.name, config.run.steps, newest[1].step if newest else 0)
    if newest:
        checkpoints.link_export()
    else:
        _forget_other_attempt(config)
    tracker = Tracker(config, progress.say_plainly, context.tags)
    ending: Ending = "FAILED"
    failures = translated_failures(
        "the same command resumes from the last checkpoint",
        reached=lambda: f" after step {_last_step(checkpoints)} was saved",
    )
    try:
        with failures, progress:
            write_atomically(config.folder / "config.yaml", dump_config(config))
            _show_dropped(prepared, progress)
            summary = _train_on_pools(config, prepared, tracker, progress, context)
        ending = "FINISHED"
        return summary
    except StopRequested:
        ending = "KILLED"
        raise RunStopped(
            f"stopped as asked; step {_last_step(checkpoints)} of {config.run.steps} is saved, "
            "and the same command resumes from it"
        ) from None
    except (KeyboardInterrupt, SystemExit):  # before the run could take a stop, or the second signal
        ending = "KILLED"
        raise
    finally:
        with contextlib.ExitStack() as first_failure:
            if ending != "FINISHED":
                first_failure.enter_context(contextlib.suppress(RunError))  # report the first failure only
            tracker.finish(ending)


def _train_on_pools(
    config: RunConfig, prepared: PreparedRun, tracker: Any, progress: RunProgress, context: RunContext
) -> dict[str, Any]:
    """Start the pools, train, stop the pools."""
    from orchestrator.pools.training import Pools
    from orchestrator.training.live_metrics import LiveMetrics
    from orchestrator.training.session import Session

    progress.say(
        "starting the pools: rollout (vLLM), verification (math-verify), learning (DeepSpeed ZeRO-3)"
    )
    nodes = connect()
    stop = Stop(progress.say)
    with contextlib.ExitStack() as stack:
        if not context.in_trial:
            stack.enter_context(stop.on_signals())
        with stop.interruptible():
            pools = Pools(config, prepared.tokens, context.place(config, lambda: nodes), context.in_trial)
            stack.callback(pools.stop)
        live = stack.enter_context(LiveMetrics(config, pools))
        session = Session(config, prepared, pools, tracker, progress, live, stop, context)
        session.rewind()
        return _train_through_failures(session)


def _train_through_failures(session: "Session") -> dict[str, Any]:
    """Train. When a rank dies or its trajectories are lost, restart all ranks and rewind.

    The other pools restart their own workers.
    """
    from orchestrator.training.loop import run_steps

    failure: RayError | None = None
    while True:
        try:
            if failure is not None:
                with session.stop.interruptible():  # nothing is unsaved
                    session.pools.restart_learners(failure)
                    session.rewind()
            return run_steps(session)
        except (RayActorError, ObjectLostError) as error:
            failure = error
            cause = (
                "a learner rank died"
                if isinstance(error, RayActorError)
                else "a node died with the ranks' input"
            )
            session.say(f"{cause} after step {session.step}: restarting the ranks")


def _deliver(config: RunConfig, progress: RunProgress | None, context: RunContext) -> None:
    """Send what a finished run could not deliver to MLflow."""
    from orchestrator.tracking.tracker import deliver_leftovers

    deliver_leftovers(config, progress.say_plainly if progress else print, context.tags, finished=True)


def _show_dropped(prepared: PreparedRun, progress: RunProgress) -> None:
    for problems, name in ((prepared.train, "training"), (prepared.eval, "held-out")):
        if problems is not None and problems.dropped:
            progress.say(
                f"{problems.dropped} {name} problems are longer than rollout.max_prompt_tokens "
                "and are left out"
            )


def _forget_other_attempt(config: RunConfig) -> None:
    """Delete the log of an attempt that ended before its first checkpoint, if it had other settings."""
    saved = config.folder / "config.yaml"
    if not saved.exists():
        return
    with contextlib.suppress(ConfigError):  # another version wrote the settings
        if not changed_settings(saved, config):
            return
    forget(config.folder)


def fetch_newer(config: RunConfig, checkpoints: Checkpoints, remote: RemoteStorage) -> None:
    """Fetch the newest checkpoint of `run.remote` if it is newer than the folder's.

    The ranks fetch their own shards later.

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
                refuse_changed_settings(remote.shown, saved, config)
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


def _finished_summary(config: RunConfig, checkpoints: Checkpoints) -> dict[str, Any] | None:
    """The summary of a run that has reached its last step; None for any other."""
    path = config.folder / "summary.json"
    if _last_step(checkpoints) < config.run.steps or checkpoints.newest() is None or not path.exists():
        return None
    summary = json.loads(path.read_text())
    return summary if summary["steps"] >= config.run.steps else None


def _refuse_other_rank_count(config: RunConfig, checkpoints: Checkpoints) -> None:
    newest = checkpoints.newest()
    if newest and newest[1].num_ranks != config.learning.num_ranks:
        raise ConfigError(
            f"learning.num_ranks={config.learning.num_ranks}, but {newest[0]} was written by "
            f"{newest[1].num_ranks} rank(s), and ZeRO-3 checkpoints load at that number only: use it, or "
            "start another run.name from this run's export/"
        )


def _refuse_other_settings(config: RunConfig) -> None:
    """Refuse a folder whose run has other settings: no configuration would describe what comes out."""
    path = config.folder / "config.yaml"
    if not path.exists() or not any((config.folder / kept).exists() for kept in ("checkpoints", "export")):
        return
    refuse_changed_settings(str(config.folder), path, config)


def refuse_changed_settings(place: str, saved: Path, config: Section) -> None:
    """Refuse to continue a run whose settings differ in more than what may change.

    Args:
        place: Where the run is, for the message.
        saved: The run's configuration file.

    Raises:
        ConfigError: They differ.
    """
    changes = changed_settings(saved, config, f"{place}/{saved.name}")
    changed = [
        f"{key}: {change}"
        for key, change in changes.items()
        if not has_mark(type(config), key, Mark.MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{place} holds a run with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Choose another run.name, restore these settings, or delete the folder."
        )
