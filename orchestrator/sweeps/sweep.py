"""A sweep from its configuration to its outcome: check, train the trunks, train the trials, conclude.

The ledger and the runs' own folders say what is finished. So the same call resumes a sweep after any kill,
and trains only what is new when values, points or seeds have been added.
"""

import contextlib
import time

from ray.tune.error import TuneError

from orchestrator.cluster.bundles import bundles_for
from orchestrator.cluster.nodes import Resources, planned_nodes
from orchestrator.config.resume import with_kept_verifier
from orchestrator.config.schema import Mark, changed_settings, dump_config, has_mark, public_settings
from orchestrator.config.sweep import SweepConfig, base_config
from orchestrator.config.training import RunConfig
from orchestrator.data.fingerprints import refuse_changed_sources, saved_sources, write_sources
from orchestrator.data.tokens import refuse_unfit_model
from orchestrator.errors import ConfigError, RunError
from orchestrator.pools.failures import translated_failures
from orchestrator.storage.files import claimed, write_atomically
from orchestrator.storage.folders import make_folder, refuse_unusable_folder
from orchestrator.storage.run_log import logged_to
from orchestrator.sweeps.conclusion import Conclusion
from orchestrator.sweeps.optuna_search import PointSearch
from orchestrator.sweeps.plan import Member, SweepPlan
from orchestrator.sweeps.progress import SweepProgress
from orchestrator.sweeps.results import OVER, Ledger, State, SweepOutcome
from orchestrator.sweeps.stages import Stages
from orchestrator.tracking.parent_run import ParentRun
from orchestrator.training.preparation import prepare


def sweep(config: SweepConfig, progress: SweepProgress | None = None) -> SweepOutcome:
    """Start or resume a sweep.

    Args:
        progress: Where the sweep is shown; the terminal unless given.

    Raises:
        ConfigError, DataError: Before anything is started.
        RunError: The cluster had no room for any trial within `wait_s`, or Ray or the disk failed. The same
            call resumes.
        KeyboardInterrupt: After Ctrl-C, when the trials have been stopped. The same call resumes.
    """
    base = base_config(config)
    refuse_unusable_folder(base.run.dir / config.name, "run.dir or name")
    plan = SweepPlan(config, base)
    if _holds_trials(plan):
        saved = (plan.folder / "base.yaml").read_bytes()
        plan = SweepPlan(config, with_kept_verifier(base, saved))
    prepared = prepare(plan.base)
    _refuse_other_settings(plan)
    if any(plan.folder.glob("t*s/*/checkpoints")):
        refuse_changed_sources(str(plan.folder), saved_sources(plan.folder) or {}, prepared.sources)
    _refuse_too_large(plan, planned_nodes())
    make_folder(plan.folder, "run.dir or name")
    with claimed(plan.folder, work="running this sweep", key="name"), logged_to(plan.folder):
        planned = len(plan.trials) or (config.search.points or 0) * len(config.seeds)
        write_sources(plan.folder, prepared.sources)
        ledger = Ledger(plan.folder, config.name, config.space, config.metric, prepared.eval_name, planned)
        return _Sweep(plan, ledger, progress or SweepProgress(config.name)).run()


class _Sweep:
    """One call of `sweep`, after its checks."""

    def __init__(self, plan: SweepPlan, ledger: Ledger, progress: SweepProgress) -> None:
        self.plan = plan
        self.ledger = ledger
        self.progress = progress
        self.tracker = ParentRun(
            plan.tracking_uri,
            plan.base.tracking.experiment,
            plan.sweep.name,
            plan.folder,
            params={key: str(value) for key, value in public_settings(plan.sweep).items()},
            tags={"laser.kind": "sweep"},
            say=progress.say_plainly,
        )
        self.tags = {"mlflow.parentRunId": self.tracker.run_id, "laser.sweep": plan.sweep.name}
        self.stages = Stages(plan, ledger, progress, self.tags, self._save)
        self.started = time.monotonic()
        self.seconds_before = ledger.seconds
        write_atomically(plan.folder / "base.yaml", dump_config(plan.base))
        write_atomically(plan.folder / "sweep.yaml", dump_config(plan.sweep))

    def run(self) -> SweepOutcome:
        complete = False
        try:
            with translated_failures("the same command resumes the sweep", also=(TuneError,)), self.progress:
                for member in [*self.plan.trunks, *self.plan.trials, *self._proposed_before()]:
                    self.ledger.add(member)
                self._save()
                self._train_trunks()
                self._train_trials()
                self._save()
                outcome = Conclusion(
                    self.plan, self.ledger, self.tracker, self.progress, self.tags, self.stages.ended
                ).conclude()
            complete = True
            return outcome
        finally:
            with contextlib.suppress(OSError):
                self._save()
            self.tracker.finish(failed=not complete)

    def _save(self) -> None:
        self.ledger.seconds = self.seconds_before + time.monotonic() - self.started
        self.ledger.save()
        self.progress.show(self.ledger)

    def _proposed_before(self) -> list[Member]:
        """The trials that Optuna has proposed in earlier calls."""
        if self.plan.sweep.search.algorithm != "optuna":
            return []
        return [
            self.plan.trial(trial["point"], trial["seed"])
            for trial in self.ledger.before["trials"].values()
            if trial["seed"] in self.plan.sweep.seeds
        ]

    def _train_trunks(self) -> None:
        waiting = [
            member
            for member in self.plan.trunks
            if self.ledger.trunks[member.name].status not in OVER and self._is_needed(member)
        ]
        if waiting:
            self.progress.say(
                f"{len(waiting)} trunk(s): first steps, c_ref and base evaluation, which the trials share"
            )
            self.stages.fit("trunks", waiting)
        for trial in self.ledger.trials.values():
            trunk = self.ledger.trunks.get(trial.trunk or "")
            if trunk is not None and trunk.status is State.FAILED and trial.status is State.PENDING:
                trial.status, trial.error = State.FAILED, f"its trunk {trunk.name} failed: {trunk.error}"

    def _is_needed(self, trunk: Member) -> bool:
        """Whether a pending trial, which has not started yet, branches from this trunk."""
        if self.plan.sweep.search.algorithm == "optuna":
            return PointSearch(self.plan, self.ledger).left > 0
        return any(
            not (self.plan.folder / trial.folder / "checkpoints").exists()
            for trial in self.ledger.trials.values()
            if trial.trunk == trunk.name and trial.status is State.PENDING
        )

    def _train_trials(self) -> None:
        if self.plan.sweep.search.algorithm == "optuna":
            for trunk in self.ledger.trunks.values():
                if trunk.status is State.FAILED:
                    raise RunError(f"{trunk.name} failed, and all trials branch from it: {trunk.error}")
            self.stages.fit("trials", None)
            return
        pending = {trial.name for trial in self.ledger.trials.values() if trial.status is State.PENDING}
        if pending:
            self.stages.fit("trials", [member for member in self.plan.trials if member.name in pending])


def _refuse_too_large(plan: SweepPlan, nodes: list[Resources]) -> None:
    """Refuse a run that these nodes cannot hold. For Optuna, each value of the space is tried alone."""
    for member in [*plan.trunks, *plan.trials]:
        _refuse_config(f"trial {member.name}", member.config, nodes)
    if plan.trials:
        return
    seed = plan.sweep.seeds[0]
    for key, values in plan.sweep.space.items():
        for value in getattr(values, values.kind):
            _refuse_config(f"space: {key}={value}", plan.trial({key: value}, seed).config, nodes)


def _refuse_config(what: str, config: RunConfig, nodes: list[Resources]) -> None:
    try:
        refuse_unfit_model(config)
        bundles_for(config, nodes)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error


def _holds_trials(plan: SweepPlan) -> bool:
    return (plan.folder / "base.yaml").exists() and any(plan.folder.glob("t*s/*/checkpoints"))


def _refuse_other_settings(plan: SweepPlan) -> None:
    """Refuse a base that differs from the one in the sweep's folder: each saved trial would refuse it too."""
    if not _holds_trials(plan):
        return
    saved = plan.folder / "base.yaml"
    # Every trial takes these from the sweep or from its point, and never from the base.
    searched = {key for key, values in plan.sweep.space.items() if values.when is None}
    changed = [
        f"{key}: {change}"
        for key, change in changed_settings(saved, plan.base).items()
        if key not in searched and not has_mark(RunConfig, key, Mark.MAY_CHANGE, Mark.SET_BY_SWEEP)
    ]
    if changed:
        raise ConfigError(
            f"{plan.folder} holds a sweep with other settings:\n  " + "\n  ".join(changed) + "\n"
            "You may add values, points and seeds. For other settings choose another name, or delete it."
        )
