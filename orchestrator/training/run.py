"""A training run from its configuration to its summary: prepare, claim the folder, train, clean up."""

import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from actors.checking import refuse_unusable
from orchestrator.cluster.nodes import Resources, connect
from orchestrator.config.resume import saved_settings, with_kept_verifier
from orchestrator.config.schema import Mark, Section, changed_settings, dump_config, has_mark
from orchestrator.config.training import RunConfig
from orchestrator.data.eos import turn_end_warning
from orchestrator.data.fingerprints import (
    Sources,
    changed_sources,
    from_tree,
    refuse_changed_sources,
    saved_sources,
    write_sources,
)
from orchestrator.errors import ConfigError, RunError, RunStopped
from orchestrator.pools.failures import translated_failures
from orchestrator.pools.savings import kill_advice
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.files import claimed, read_record, write_atomically
from orchestrator.storage.folders import make_folder, refuse_unusable_folder
from orchestrator.storage.journal import Ending, forget
from orchestrator.storage.remote import DamagedCopy, RemoteStorage, fetch_checkpoint, place_of
from orchestrator.storage.run_log import logged_to
from orchestrator.terminal import RunProgress
from orchestrator.training.context import RunContext, standalone
from orchestrator.training.missing_nodes import refuse_what_has_no_room
from orchestrator.training.preparation import PreparedRun, prepare
from orchestrator.training.stopping import StopRequested
from orchestrator.training.verifier_files import changed_verifiers, own_verifiers

if TYPE_CHECKING:
    from orchestrator.tracking.tracker import Tracker


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
    checkpoints = Checkpoints(
        config.folder, config.run.keep_checkpoints, elsewhere=config.run.remote is not None
    )
    remote = RemoteStorage(config.run.remote, config.run.name) if config.run.remote else None
    config = with_kept_verifier(config, saved_settings(config.folder))
    _refuse_other_settings(config)
    if remote is not None:
        config = fetch_newer(config, checkpoints, remote)
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
            summary = _start_or_resume(config, checkpoints, prepared, progress, context)
            outcome = Outcome(summary, already_finished=False)
        if remote is not None:
            remote.upload_records(config.folder)
            if not (config.folder / "export" / "config.json").exists():  # rank 0 was on another node
                remote.fetch(f"{place_of(summary['steps'])}/export", config.folder / "export")
        return outcome


def _prepare(config: RunConfig, context: RunContext, checkpoints: Checkpoints) -> PreparedRun:
    """Refuse what can be refused before anything starts, and load what the run reads."""
    refuse_unusable(config.verifier_texts)
    prepared = prepare(config)
    prepared.sources.update(own_verifiers(config.verifier_texts))
    _refuse_other_sources(config, context, checkpoints, prepared.sources)
    refuse_what_has_no_room(config, context)
    return prepared


def _refuse_other_sources(
    config: RunConfig, context: RunContext, checkpoints: Checkpoints, sources: Sources
) -> None:
    """Refuse to go on from a checkpoint that was made with other data or another model.

    A verifier's file may change in what it prints, for example, so a change of it is only noted.
    """
    start = checkpoints.newest()
    if start is None and context.trunk is not None:
        start = Checkpoints(context.trunk, keep=1).newest()
    if start is None:
        return
    if start[1].sources is None:
        checkpoints.notes.append(
            f"{start[0]} does not say which data and model it was made with, since an earlier version wrote "
            "it: not compared"
        )
        return
    before = from_tree(start[1].sources)
    checkpoints.notes += changed_verifiers(before, sources)
    refuse_changed_sources(str(config.folder), before, sources)


def _start_or_resume(
    config: RunConfig,
    checkpoints: Checkpoints,
    prepared: PreparedRun,
    progress: RunProgress | None,
    context: RunContext,
) -> dict[str, Any]:
    """Train to the last step with trackers, terminal and pools around. The caller holds the folder."""
    newest = checkpoints.newest()
    progress = progress or RunProgress(config.run.name, config.run.steps, newest[1].step if newest else 0)
    if newest:
        checkpoints.link_export()
    else:
        _forget_other_attempt(config, prepared.sources)
    nodes, tracker = _open(config, progress, context)
    from orchestrator.training.on_pools import train_on_pools

    ending: Ending = "FAILED"
    failures = translated_failures(
        "the same command resumes from the last checkpoint",
        reached=lambda: f" after step {_last_step(checkpoints)} was saved",
        advice=kill_advice(config),
    )
    try:
        with failures, progress:
            write_atomically(config.folder / "config.yaml", dump_config(config))
            write_sources(config.folder, prepared.sources)
            _show_warnings(prepared, progress)
            summary = train_on_pools(config, checkpoints, prepared, nodes, tracker, progress, context)
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


def _open(config: RunConfig, progress: RunProgress, context: RunContext) -> tuple[list[Resources], "Tracker"]:
    """The cluster's nodes and the run's tracker. Ray's processes start while this one imports MLflow.

    Raises:
        ConfigError: No cluster answers, or as `Tracker`.
    """

    def track() -> "Tracker":
        # Seconds of imports that no refusal has to wait for.
        from orchestrator.tracking.tracker import Tracker

        return Tracker(config, progress.say_plainly, context.tags)

    with ThreadPoolExecutor(1) as beside:
        opened = beside.submit(track)
        try:
            nodes = connect()  # Ray wants the main thread, for its signals
        except BaseException as error:
            opened.result().finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
    return nodes, opened.result()


def _deliver(config: RunConfig, progress: RunProgress | None, context: RunContext) -> None:
    """Send what a finished run could not deliver to MLflow."""
    from orchestrator.tracking.tracker import deliver_leftovers

    deliver_leftovers(config, progress.say_plainly if progress else print, context.tags, finished=True)


def _show_warnings(prepared: PreparedRun, progress: RunProgress) -> None:
    if warning := turn_end_warning(prepared.tokens.chat, prepared.tokens.eos_tokens):
        progress.say(f"[yellow]warning[/yellow] {escape(warning)}")
    for line in prepared.too_long():
        progress.say(escape(line))


def _forget_other_attempt(config: RunConfig, sources: Sources) -> None:
    """Delete the log of an attempt without a checkpoint, if it had other settings or sources."""
    saved = config.folder / "config.yaml"
    if not saved.exists():
        return
    with contextlib.suppress(ConfigError):  # another version wrote the settings
        before = saved_sources(config.folder) or {}
        if not changed_settings(saved, config) and not changed_sources(before, sources):
            return
    forget(config.folder)


def fetch_newer(config: RunConfig, checkpoints: Checkpoints, remote: RemoteStorage) -> RunConfig:
    """Fetch the newest checkpoint of `run.remote` if it is newer than the folder's.

    The ranks fetch their own shards later. Returns the settings, with that run's verifier if they name none.

    Raises:
        ConfigError: It cannot be read or written, or holds a run with other settings.
    """
    try:
        remote.try_out()
        found = remote.newest()
        if found is None:
            return config
        if (settings := remote.read("config.yaml")) is not None:
            config = with_kept_verifier(config, settings)
            with tempfile.TemporaryDirectory() as folder:
                saved = Path(folder) / "config.yaml"
                saved.write_bytes(settings)
                refuse_changed_settings(remote.shown, saved, config)
        config.folder.mkdir(parents=True, exist_ok=True)
        with claimed(config.folder):
            here = _newest_here(checkpoints)
            while found is not None and (here is None or _is_news(found[0], here)):
                try:
                    remote.fetch_records(config.folder)
                    fetch_checkpoint(checkpoints, remote, *found)
                    return config
                except DamagedCopy as error:
                    checkpoints.notes.append(str(error))
                    found = remote.newest(before=found[0].step)
    except RunError as error:
        raise ConfigError(str(error)) from error
    return config


def _newest_here(checkpoints: Checkpoints) -> TrainingState | None:
    """The state of the folder's newest whole checkpoint; None also where all are damaged."""
    try:
        newest = checkpoints.newest()
    except ConfigError as error:
        checkpoints.notes.append(str(error))
        return None
    return newest[1] if newest else None


def _is_news(state: TrainingState, here: TrainingState) -> bool:
    return here.step <= state.step and not here.is_same(state)


def _last_step(checkpoints: Checkpoints) -> int:
    newest = checkpoints.newest()
    return newest[1].step if newest else 0


def _finished_summary(config: RunConfig, checkpoints: Checkpoints) -> dict[str, Any] | None:
    """The summary of a run that has reached its last step; None for any other."""
    path = config.folder / "summary.json"
    if _last_step(checkpoints) < config.run.steps or checkpoints.newest() is None or not path.exists():
        return None
    summary = read_summary(path, "steps")
    finished = summary["steps"] >= config.run.steps and summary.get("status") != "failed"
    return summary if finished else None


def read_summary(path: Path, number: str) -> dict[str, Any]:
    """The content of a run's `summary.json`.

    Args:
        number: Key of a number that it must have.

    Raises:
        ConfigError: It is damaged.
    """
    advice = "Delete it: the same command then writes it again"
    summary = read_record(path, dict, advice)
    if not isinstance(summary.get(number), int | float):
        raise ConfigError(f"{path}: is damaged, since it has no number '{number}'. {advice}")
    return summary


def _refuse_other_settings(config: RunConfig) -> None:
    """Refuse a folder whose run has other settings: no configuration would describe what comes out."""
    if saved_settings(config.folder) is not None:
        refuse_changed_settings(str(config.folder), config.folder / "config.yaml", config)


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
