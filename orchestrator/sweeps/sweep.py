"""A sweep from its configuration to its answer: refuse what cannot work, train the trunks, then the trials, register the best, report.

Ray Tune runs each stage: placement, scheduling, pruning, retries. What is finished is known from the runs' own folders and the ledger,
so the same call goes on after any kill, and with more points or seeds than before.
"""

import functools
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher

from dashboards.report import write_report
from orchestrator.checkpoints import write_atomically
from orchestrator.cluster import bundles_for, connect, demand, planned_nodes
from orchestrator.config import changed_settings, dump_config, flat_settings
from orchestrator.errors import ConfigError, LaserError, RunError
from orchestrator.preparation import prepare
from orchestrator.registry import register
from orchestrator.run import MAY_CHANGE, claimed
from orchestrator.sweeps.optuna_search import optuna_search
from orchestrator.sweeps.plan import Member, Plan
from orchestrator.sweeps.progress import SweepProgress
from orchestrator.sweeps.results import OVER, Best, Ledger, State, Trial, Trunk, Work
from orchestrator.sweeps.settings import SweepConfig, base_config
from orchestrator.sweeps.trial import TrialRunner
from orchestrator.tracking import SweepTracker, deliver_leftovers

LOOK_EVERY_S = 2.0
"""How often the steps of running trials are read from their folders."""

BUSY_AFTER_S = 20.0
"""Without a running trial for so long, the sweep says what it waits for."""

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the runs log themselves
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command's to handle
    "TUNE_GLOBAL_CHECKPOINT_S": "60",  # nothing is read from Tune's own state
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1e9",  # told by this module, with what is needed
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # whose tables cannot be switched off
}


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep found."""

    folder: Path
    trials: list[Trial]
    best: Best | None
    work: Work
    model: str | None
    """The best trial's weights in MLflow's registry, `models:/NAME@best`."""
    report: Path

    @property
    def failed(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status is State.FAILED]


def sweep(config: SweepConfig, progress: SweepProgress | None = None) -> SweepOutcome:
    """Train, or go on training, all trials of a sweep.

    Raises:
        ConfigError, DataError: Before anything is started.
        RunError: The cluster gave no room to any trial within `wait_s`, or every trunk failed.
    """
    base = base_config(config)
    prepared = prepare(base)
    plan = Plan(config, base)
    _refuse_other_settings(plan)
    nodes = planned_nodes()
    for member in [*plan.trunks, *plan.trials] or [plan.trial({}, config.seeds[0])]:
        try:
            bundles_for(member.config, nodes)
        except ConfigError as error:
            raise ConfigError(f"trial {member.name}: {error}") from error
    plan.folder.mkdir(parents=True, exist_ok=True)
    with claimed(plan.folder):
        ledger = Ledger(plan.folder, config.name, config.space, config.metric, prepared.eval_name)
        return _Sweep(plan, ledger, progress or SweepProgress(config.name)).run()


class _Sweep:
    """One call of `sweep`, after everything has been checked."""

    def __init__(self, plan: Plan, ledger: Ledger, progress: SweepProgress) -> None:
        self.plan, self.ledger, self.progress = plan, ledger, progress
        self.folder = plan.folder
        uri = plan.base.tracking.uri
        assert uri is not None, "a plan resolves it"
        self.tracker = SweepTracker(
            uri,
            plan.base.tracking.experiment,
            plan.sweep.name,
            self.folder,
            params=flat_settings(plan.sweep),
            tags={"laser.kind": "sweep"},
            say=progress.say_plainly,
        )
        write_atomically(self.folder / "base.yaml", dump_config(plan.base))
        write_atomically(self.folder / "sweep.yaml", dump_config(plan.sweep))
        self.members: dict[str, Member] = {}
        self.started = time.monotonic()
        self.seconds_before = ledger.seconds

    def run(self) -> SweepOutcome:
        complete = False
        try:
            with self.progress:
                for member in [*self.plan.trunks, *self.plan.trials, *self._proposed_before()]:
                    self.take_in(member)
                self.save()
                self._train_trunks()
                self._train_trials()
                outcome = self._conclude()
            complete = True
            return outcome
        except RayError as error:
            raise RunError(f"{str(error).strip()}. Ray failed; the same command goes on where the sweep was") from error
        finally:
            self.save()
            self.tracker.finish(failed=not complete)

    def _proposed_before(self) -> list[Member]:
        """The trials that Optuna has proposed in earlier calls."""
        if self.plan.sweep.search.algorithm != "optuna":
            return []
        known = self.ledger.before["trials"].values()
        return [self.plan.trial(trial["point"], trial["seed"]) for trial in known if trial["seed"] in self.plan.sweep.seeds]

    @functools.cached_property
    def runner(self) -> TrialRunner:
        """What Tune runs, for this cluster: joins it, or starts Ray."""
        os.environ.update(TUNE_ENVIRONMENT)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by this module
        return TrialRunner(self.plan, connect(), {"mlflow.parentRunId": self.tracker.run_id, "laser.sweep": self.plan.sweep.name})

    def take_in(self, member: Member) -> Trial | Trunk:
        self.members[member.name] = member
        return self.ledger.add(member)

    def save(self) -> None:
        self.ledger.seconds = self.seconds_before + time.monotonic() - self.started
        self.ledger.save()
        self.progress.show(self.ledger)

    def _train_trunks(self) -> None:
        waiting = [trunk.name for trunk in self.ledger.trunks.values() if trunk.status not in OVER]
        if waiting:
            names = set(waiting)
            self.progress.say(f"{len(waiting)} trunk(s): steps, c_ref and base evaluation that the trials share")
            self._fit("trunks", [member for member in self.plan.trunks if member.name in names])
        for trial in self.ledger.trials.values():
            trunk = self.ledger.trunks.get(trial.trunk or "")
            if trunk is not None and trunk.status is State.FAILED and trial.status is State.PENDING:
                trial.status, trial.error = State.FAILED, f"its trunk {trunk.name} failed: {trunk.error}"

    def _train_trials(self) -> None:
        if self.plan.sweep.search.algorithm == "optuna":
            self._fit("trials", None)
            return
        waiting = {trial.name for trial in self.ledger.trials.values() if trial.status is State.PENDING}
        if waiting:
            self._fit("trials", [member for member in self.plan.trials if member.name in waiting])

    def _fit(self, stage: str, members: list[Member] | None) -> None:
        """One stage on Ray Tune: these runs, or, for None, those that Optuna proposes."""
        sweep = self.plan.sweep
        storage = self.folder / "tune"
        shutil.rmtree(storage / stage, ignore_errors=True)  # Tune's notes of an earlier call
        search, samples = (None, 1) if members is not None else self._optuna()
        if samples == 0:
            return
        scheduler = None
        if sweep.asha is not None and stage == "trials":
            scheduler = ASHAScheduler(
                time_attr="step",
                grace_period=sweep.asha.grace_steps,
                reduction_factor=sweep.asha.reduction_factor,
                max_t=max([self.plan.base.run.steps, *(member.config.run.steps for member in members or [])]) + 1,
            )
        runner = self.runner
        tuner = tune.Tuner(
            tune.with_resources(lambda config: runner(config), runner.resources),
            param_space={} if members is None else {"member": tune.grid_search([member.name for member in members])},
            tune_config=tune.TuneConfig(
                metric="objective",
                mode="max",
                search_alg=search,
                scheduler=scheduler,
                num_samples=samples,
                max_concurrent_trials=sweep.concurrency if search is None else None,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name=stage,
                storage_path=str(storage),
                failure_config=tune.FailureConfig(max_failures=sweep.retries),
                callbacks=[_Watch(self)],
                verbose=0,
            ),
        )
        tuner.fit()

    def _optuna(self) -> tuple[Searcher, int]:
        """Optuna's TPE over the space, knowing what earlier calls have found, and the number of trials that are left to it."""
        sweep = self.plan.sweep
        searcher, left = optuna_search(sweep, self.ledger)
        if len(sweep.seeds) > 1:
            searcher = Repeater(searcher, repeat=len(sweep.seeds))
        if sweep.concurrency is not None:
            searcher = ConcurrencyLimiter(searcher, max_concurrent=sweep.concurrency)
        return searcher, left * len(sweep.seeds)

    def _conclude(self) -> SweepOutcome:
        """Send what still waits, register the best trial, write the report."""
        for trial in self.ledger.trials.values():
            if trial.status in (State.PRUNED, State.FAILED):
                self._close_mlflow_run(trial)
        best, model = self.ledger.best(), None
        if best is not None:
            model = self._register(best)
            values = {"best/objective": best.objective, "work/share": self.ledger.work().share}
            metrics = self.ledger.trials[best.trial].metrics
            self.tracker.log(values | {f"best/{name}": value for name, value in metrics.items() if value is not None})
        self.save()
        report = self.folder / "report.html"
        write_report([self.folder], report)
        self.tracker.log_artifact(report)
        self.tracker.log_artifact(self.ledger.path)
        return SweepOutcome(self.folder, list(self.ledger.trials.values()), best, self.ledger.work(), model, report)

    def _register(self, best: Best) -> str | None:
        """The best trial's weights in MLflow's registry, under the sweep's name with the alias `best`."""
        trial = self.ledger.trials[best.trial]
        config = self.members[trial.name].config
        if trial.mlflow_run_id is None:
            self.progress.say(f"MLflow has not heard of {trial.name} yet, so its weights are not registered; the same command does it")
            return None
        tags = {"laser.sweep": self.plan.sweep.name, "laser.trial": trial.name, "laser.objective": f"{trial.objective:.6g}"}
        try:
            register(config.tracking.uri or "", self.plan.sweep.name, config.folder / "export", trial.mlflow_run_id, tags=tags)
        except LaserError as error:
            self.progress.say(f"[yellow]warning[/yellow] the best weights were not registered: {error}; the same command tries again")
            return None
        return f"models:/{self.plan.sweep.name}@best"

    def _close_mlflow_run(self, trial: Trial) -> None:
        """Send what a stopped trial still had to say, and mark its MLflow run."""
        member = self.members[trial.name]
        if not (member.config.folder / "metrics.jsonl").exists():
            return
        try:
            with claimed(member.config.folder, patience_s=60.0):  # its driver may still be ending
                deliver_leftovers(member.config, self.progress.say_plainly)
        except LaserError as error:
            self.progress.say_plainly(f"{trial.name}: not all that it measured has reached MLflow: {error}")
        self.ledger.look(trial)
        if trial.mlflow_run_id:
            status = "KILLED" if trial.status is State.PRUNED else "FAILED"
            self.tracker.tag_child(trial.mlflow_run_id, {"laser.status": str(trial.status)}, status)


class _Watch(Callback):
    """Writes what Tune tells of its trials into the ledger, and shows it."""

    def __init__(self, sweep: _Sweep) -> None:
        self.sweep, self.ledger, self.progress = sweep, sweep.ledger, sweep.progress
        self.runs: dict[str, Trial | Trunk] = {}
        self.last_active = time.monotonic()
        self.waiting_since: float | None = None
        self.last_look = 0.0

    def __reduce__(self) -> tuple[type[Callback], tuple]:
        """Tune stores its callbacks, but nothing is ever restored from there."""
        return Callback, ()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._run(trial).status = State.RUNNING
        self.sweep.save()

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict, **info: Any) -> None:
        run = self._run(trial)
        if isinstance(run, Trial) and "figures" in result:
            self.ledger.evaluated(run, result["step"], result["figures"])
            if not result["final"]:
                self.progress.evaluated(run)
            self.sweep.save()

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        run = self._run(trial)
        run.status = State.FINISHED if trial.last_result.get("final") else State.PRUNED
        self._ended(run)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.progress.say(f"{self._run(trial).name} failed and tries again from its last checkpoint: {_reason(trial)}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        run = self._run(trial)
        run.status, run.error = State.FAILED, _reason(trial)
        self._ended(run)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        now = time.monotonic()
        if any(trial.status == TuneTrial.RUNNING for trial in trials) or not trials:
            self.last_active, self.waiting_since = now, None
        elif now - self.last_active > BUSY_AFTER_S:
            for pending in [trial for trial in trials if trial.status == TuneTrial.PENDING][:1]:
                self._tell_what_is_missing(pending, now)
        if now - self.last_look > LOOK_EVERY_S:
            self.last_look = now
            for run in self.runs.values():
                if run.status is State.RUNNING:
                    self.ledger.look(run)
            self.progress.show(self.ledger)

    def _tell_what_is_missing(self, pending: TuneTrial, now: float) -> None:
        """Say once what the next trial needs and what is free; give up after `wait_s`."""
        free = ray.available_resources()
        needed = demand(bundles_for(self.sweep.runner.member(pending.config).config, self.sweep.runner.nodes))
        message = (
            f"a trial needs {needed}, and the cluster has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free: "
            "other work holds the rest"
        )
        if now - self.last_active > self.sweep.plan.sweep.wait_s:
            raise RunError(f"{message}. Gave up after {self.sweep.plan.sweep.wait_s:g} s (wait_s); the same command goes on later")
        if self.waiting_since is None:
            self.waiting_since = now
            self.progress.say(f"waiting: {message}")

    def _ended(self, run: Trial | Trunk) -> None:
        self.ledger.look(run)
        self.progress.ended(run)
        self.sweep.save()

    def _run(self, trial: TuneTrial) -> Trial | Trunk:
        if trial.trial_id not in self.runs:
            member = self.sweep.runner.member(trial.config)
            known = self.ledger.trunks if member.is_trunk else self.ledger.trials
            self.runs[trial.trial_id] = known.get(member.name) or self.sweep.take_in(member)
        return self.runs[trial.trial_id]


def _reason(trial: TuneTrial) -> str:
    """The first line of what made a trial fail, without the frames of Ray and Tune."""
    # As Tune has just written it: its own getters look where it is copied later.
    path = trial.pickled_error_file
    error = ray.cloudpickle.loads(Path(path).read_bytes()) if path is not None else trial.get_error()
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, RayActorError):
        return "its driver died"
    lines = str(error).strip().splitlines()
    return next((line for line in lines if line.strip()), type(error).__name__)


def _refuse_other_settings(plan: Plan) -> None:
    """A sweep's folder belongs to one base: its trials would refuse another one by one."""
    saved = plan.folder / "base.yaml"
    if not saved.exists():
        return
    changed = [f"{key}: {change}" for key, change in changed_settings(saved, plan.base).items() if not key.startswith(MAY_CHANGE)]
    if changed:
        raise ConfigError(
            f"{plan.folder} holds a sweep with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Points and seeds may be added; for other settings choose another name, or delete the folder."
        )
