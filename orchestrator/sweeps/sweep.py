"""A sweep from its configuration to its answer: refuse what cannot work, train the trunks, then the trials, register the best, report.

Ray Tune runs each stage: placement, scheduling, pruning, retries. What is finished is known from the runs' own folders and the ledger,
so the same call goes on after any kill, and with more points or seeds than before.
"""

import contextlib
import functools
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.callback import Callback
from ray.tune.error import TuneError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher

from dashboards.report import write_report
from orchestrator.cluster.bundles import bundles_for, demand
from orchestrator.cluster.nodes import Resources, connect, planned_nodes
from orchestrator.config.schema import changed_settings, dump_config, flat_settings
from orchestrator.config.sweep import SweepConfig, base_config
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError, LaserError, RunError
from orchestrator.models.registry import register
from orchestrator.storage.files import claimed, write_atomically
from orchestrator.storage.journal import JOURNAL
from orchestrator.sweeps.optuna_search import PointSearch
from orchestrator.sweeps.plan import Member, Plan
from orchestrator.sweeps.progress import SweepProgress
from orchestrator.sweeps.results import OVER, Best, Ledger, State, SweepOutcome, Trial, Trunk
from orchestrator.sweeps.trial import TRIAL_PATIENCE_S, TrialRunner, tags_of
from orchestrator.tracking.parent_run import SweepTracker
from orchestrator.tracking.tracker import deliver_leftovers, without_password
from orchestrator.training.preparation import prepare
from orchestrator.training.run import MAY_CHANGE
from orchestrator.training.stopping import handling_stops

LOOK_EVERY_S = 2.0
"""How often the steps of running trials are read from their folders."""

NO_LIMIT = 10**9
"""Steps at which ASHA itself would end a trial: a trial ends at its own run.steps."""

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


def sweep(config: SweepConfig, progress: SweepProgress | None = None) -> SweepOutcome:
    """Train, or go on training, all trials of a sweep.

    Raises:
        ConfigError, DataError: Before anything is started.
        RunError: The cluster gave no room to any trial within `wait_s`; or Ray or the disk failed. The same call goes on.
        KeyboardInterrupt: After the trials have been stopped. The same call goes on.
    """
    base = base_config(config)
    prepared = prepare(base)
    plan = Plan(config, base)
    _refuse_other_settings(plan)
    nodes = planned_nodes()
    for member in [*plan.trunks, *plan.trials]:
        _refuse_what_cannot_fit(f"trial {member.name}", member.config, nodes)
    if not plan.trials:
        for key, values in config.space.items():
            for value in getattr(values, values.kind):
                _refuse_what_cannot_fit(
                    f"space: {key}={value}", plan.trial({key: value}, config.seeds[0]).config, nodes
                )
    plan.folder.mkdir(parents=True, exist_ok=True)
    with claimed(plan.folder, work="running this sweep", key="name"):
        planned = len(plan.trials) or (config.search.points or 0) * len(config.seeds)
        ledger = Ledger(plan.folder, config.name, config.space, config.metric, prepared.eval_name, planned)
        return _Sweep(plan, ledger, progress or SweepProgress(config.name)).run()


class _Sweep:
    """One call of `sweep`, after everything has been checked."""

    def __init__(self, plan: Plan, ledger: Ledger, progress: SweepProgress) -> None:
        self.plan, self.ledger, self.progress = plan, ledger, progress
        self.folder = plan.folder
        self.tracker = SweepTracker(
            plan.tracking_uri,
            plan.base.tracking.experiment,
            plan.sweep.name,
            self.folder,
            params={key: without_password(str(value)) for key, value in flat_settings(plan.sweep).items()},
            tags={"laser.kind": "sweep"},
            say=progress.say_plainly,
        )
        write_atomically(self.folder / "base.yaml", dump_config(plan.base))
        write_atomically(self.folder / "sweep.yaml", dump_config(plan.sweep))
        self.members: dict[str, Member] = {}
        self.tags = {"mlflow.parentRunId": self.tracker.run_id, "laser.sweep": plan.sweep.name}
        self.ended: set[str] = set()
        """Runs that have ended in this call."""
        self.interrupted = False
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
        except ConfigError as error:  # found only now: the sweep had started
            raise RunError(str(error)) from error
        except (RayError, TuneError) as error:
            raise RunError(
                f"{str(error).strip()}. Ray failed; the same command goes on where the sweep was"
            ) from error
        except OSError as error:
            raise RunError(
                f"{error}. Mend that (is the disk full?); the same command goes on where the sweep was"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                self.save()
            self.tracker.finish(failed=not complete)

    def _proposed_before(self) -> list[Member]:
        """The trials that Optuna has proposed in earlier calls."""
        if self.plan.sweep.search.algorithm != "optuna":
            return []
        known = self.ledger.before["trials"].values()
        return [
            self.plan.trial(trial["point"], trial["seed"])
            for trial in known
            if trial["seed"] in self.plan.sweep.seeds
        ]

    @functools.cached_property
    def runner(self) -> TrialRunner:
        """What Tune runs, for this cluster: joins it, or starts Ray."""
        os.environ.update(TUNE_ENVIRONMENT)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by this module
        return TrialRunner(self.plan, connect(), self.tags)

    def take_in(self, member: Member) -> Trial | Trunk:
        self.members[member.name] = member
        return self.ledger.add(member)

    def save(self) -> None:
        self.ledger.seconds = self.seconds_before + time.monotonic() - self.started
        self.ledger.save()
        self.progress.show(self.ledger)

    def _train_trunks(self) -> None:
        waiting = [
            member
            for member in self.plan.trunks
            if self.ledger.trunks[member.name].status not in OVER and self._is_needed(member)
        ]
        if waiting:
            self.progress.say(
                f"{len(waiting)} trunk(s): steps, c_ref and base evaluation that the trials share"
            )
            self._fit("trunks", waiting)
        for trial in self.ledger.trials.values():
            trunk = self.ledger.trunks.get(trial.trunk or "")
            if trunk is not None and trunk.status is State.FAILED and trial.status is State.PENDING:
                trial.status, trial.error = State.FAILED, f"its trunk {trunk.name} failed: {trunk.error}"

    def _is_needed(self, trunk: Member) -> bool:
        """Whether a trial that is still to be trained starts at the end of this trunk."""
        if self.plan.sweep.search.algorithm == "optuna":
            return PointSearch(self.plan, self.ledger).left > 0
        trials = [
            trial
            for trial in self.ledger.trials.values()
            if trial.trunk == trunk.name and trial.status is State.PENDING
        ]
        return any(not (self.folder / trial.folder / "checkpoints").exists() for trial in trials)

    def _train_trials(self) -> None:
        if self.plan.sweep.search.algorithm == "optuna":
            for trunk in self.ledger.trunks.values():
                if trunk.status is State.FAILED:
                    raise RunError(
                        f"{trunk.name} failed, from which all trials were to branch: {trunk.error}"
                    )
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
                max_t=NO_LIMIT,
            )
        runner = self.runner
        tuner = tune.Tuner(
            tune.with_resources(lambda config: runner(config), runner.resources),
            param_space={}
            if members is None
            else {"member": tune.grid_search([member.name for member in members])},
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
        with self._interruptible():
            tuner.fit()

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the trials first: Tune gives them back when a callback raises, and not when it is interrupted itself."""
        try:
            with handling_stops(self._interrupt):
                yield
        except Exception:
            if self.interrupted:
                raise KeyboardInterrupt from None
            raise

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt  # the second time: at once
        self.interrupted = True

    def _optuna(self) -> tuple[Searcher, int]:
        """Optuna's TPE over the space, knowing what earlier calls have found, and the number of trials that are left to it."""
        sweep = self.plan.sweep
        search = PointSearch(self.plan, self.ledger)
        searcher: Searcher = Repeater(search, repeat=len(sweep.seeds)) if len(sweep.seeds) > 1 else search
        if sweep.concurrency is not None:
            searcher = ConcurrencyLimiter(searcher, max_concurrent=sweep.concurrency)
        return searcher, search.left * len(sweep.seeds)

    def _conclude(self) -> SweepOutcome:
        """Send what still waits, register the best trial, write the report."""
        runs: list[Trial | Trunk] = [*self.ledger.trunks.values(), *self.ledger.trials.values()]
        for run in runs:
            if run.status in OVER:
                self._settle(run)
        best, model = self.ledger.best(), None
        if best is not None:
            model = self._register(best)
            values = {"best/objective": best.objective, "work/share": self.ledger.work().share}
            metrics = self.ledger.trials[best.trial].metrics
            self.tracker.log(
                values | {f"best/{name}": value for name, value in metrics.items() if value is not None}
            )
        self.save()
        report: Path | None = self.folder / "report.html"
        try:
            write_report([self.folder], self.folder / "report.html")
            self.tracker.log_artifact(self.folder / "report.html")
        except LaserError as error:
            self.progress.say_plainly(f"the report was not written: {error}")
            report = None
        self.tracker.log_artifact(self.ledger.path)
        return SweepOutcome(
            self.folder, list(self.ledger.trials.values()), best, self.ledger.work(), model, report
        )

    def _register(self, best: Best) -> str | None:
        """The best trial's weights in MLflow's registry, under the sweep's name with the alias `best`."""
        trial = self.ledger.trials[best.trial]
        config = self.members[trial.name].config
        if trial.mlflow_run_id is None:
            self.progress.say(
                f"MLflow has not heard of {trial.name} yet, so its weights are not registered; the same command does it"
            )
            return None
        tags = {
            "laser.sweep": self.plan.sweep.name,
            "laser.trial": trial.name,
            "laser.objective": f"{trial.objective:.6g}",
        }
        try:
            register(
                self.plan.tracking_uri,
                self.plan.sweep.name,
                config.folder / "export",
                trial.mlflow_run_id,
                tags=tags,
            )
        except (LaserError, OSError) as error:
            self.progress.say_plainly(
                f"the best weights were not registered: {error}; the same command tries again"
            )
            return None
        return f"models:/{self.plan.sweep.name}@best"

    def _settle(self, run: Trial | Trunk) -> None:
        """Send what a run that is over still had to say, and mark one that was stopped in MLflow."""
        member = self.members[run.name]
        if not (member.config.folder / JOURNAL).exists():
            return
        try:
            with claimed(member.config.folder, TRIAL_PATIENCE_S):  # its driver may still be ending
                deliver_leftovers(
                    member.config,
                    self.progress.say_plainly,
                    tags_of(member, self.plan, self.tags),
                    finished=run.status is State.FINISHED,
                )
        except LaserError as error:
            self.progress.say_plainly(f"{run.name}: not all that it measured has reached MLflow: {error}")
        self.ledger.look(run)
        if run.mlflow_run_id and run.name in self.ended and run.status is not State.FINISHED:
            status = "KILLED" if run.status is State.PRUNED else "FAILED"
            self.tracker.tag_child(run.mlflow_run_id, {"laser.status": str(run.status)}, status)


class _Interrupted(Exception):
    """Ends Tune's loop after Ctrl-C."""


class _Watch(Callback):
    """Writes what Tune tells of its trials into the ledger, and shows it.

    What Tune tells is only noted; files are read and written at the end of Tune's step, since Tune takes an error in the other
    callbacks for one of the trial.
    """

    def __init__(self, sweep: _Sweep) -> None:
        self.sweep, self.ledger, self.progress = sweep, sweep.ledger, sweep.progress
        self.runs: dict[str, Trial | Trunk] = {}
        self.just_ended: list[Trial | Trunk] = []
        self.changed = False
        self.last_active = time.monotonic()
        self.is_waiting = False
        self.last_look = 0.0

    def __reduce__(self) -> tuple[type[Callback], tuple]:
        """Tune stores its callbacks, but nothing is ever restored from there."""
        return Callback, ()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._run(trial).status = State.RUNNING
        self.changed = True

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict, **info: Any
    ) -> None:
        run = self._run(trial)
        if isinstance(run, Trial) and "figures" in result:
            self.ledger.evaluated(run, result["step"], result["figures"])
            self.changed = True
            if not result["final"]:
                self.progress.evaluated(run)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        run, last = self._run(trial), trial.last_result
        if "refused" in last:
            run.status, run.error = State.FAILED, last["refused"]
        else:
            run.status = State.FINISHED if last.get("final") else State.PRUNED
        self.just_ended.append(run)

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self.progress.say_plainly(
            f"{self._run(trial).name} failed and tries again from its last checkpoint: {_reason(trial)}"
        )

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        run = self._run(trial)
        run.status, run.error = State.FAILED, _reason(trial)
        self.just_ended.append(run)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if self.sweep.interrupted:
            raise _Interrupted
        now = time.monotonic()
        ended, self.just_ended = self.just_ended, []
        for run in ended:
            self.ledger.look(run)
            self.sweep.ended.add(run.name)
            self.progress.ended(run, self.ledger)
        if now - self.last_look > LOOK_EVERY_S:
            self.last_look = now
            for run in self.runs.values():
                if run.status is State.RUNNING:
                    self.ledger.look(run)
            self.progress.show(self.ledger)
            self._watch_for_room(trials, now)
        if ended or self.changed:
            self.changed = False
            self.sweep.save()

    def _watch_for_room(self, trials: list[TuneTrial], now: float) -> None:
        """When no trial runs for want of resources, say once what is needed and what is free; give up after `wait_s`."""
        pending = [trial for trial in trials if trial.status == TuneTrial.PENDING]
        if (
            not pending
            or any(trial.status == TuneTrial.RUNNING for trial in trials)
            or (short := self._shortage(pending[0])) is None
        ):
            self.last_active, self.is_waiting = now, False
            return
        wait_s = self.sweep.plan.sweep.wait_s
        if now - self.last_active > wait_s:
            raise RunError(f"{short}. Gave up after {wait_s:g} s (wait_s); the same command goes on later")
        if now - self.last_active > BUSY_AFTER_S and not self.is_waiting:
            self.is_waiting = True
            self.progress.say(f"waiting: {short}")

    def _shortage(self, trial: TuneTrial) -> str | None:
        """What a trial needs and what is free, if that is less: else its placement group is there, and its driver still starts."""
        runner = self.sweep.runner
        bundles, free = (
            bundles_for(runner.member(trial.config).config, runner.nodes),
            ray.available_resources(),
        )
        if all(free.get(name, 0.0) + 1e-9 >= bundles.total(name) for name in ("CPU", "GPU")):
            return None
        return (
            f"a trial needs {demand(bundles)}, and the cluster has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free: "
            "other work holds the rest"
        )

    def _run(self, trial: TuneTrial) -> Trial | Trunk:
        if trial.trial_id not in self.runs:
            member = self.sweep.runner.member(trial.config)
            known = self.ledger.trunks if member.is_trunk else self.ledger.trials
            self.runs[trial.trial_id] = known.get(member.name) or self.sweep.take_in(member)
        return self.runs[trial.trial_id]


def _reason(trial: TuneTrial) -> str:
    """The first line of what made a trial fail, without the frames of Ray and Tune."""
    # As Tune has just written it on this machine: its own getters look where it is copied later.
    path = trial.pickled_error_file
    error = (
        ray.cloudpickle.loads(Path(path).read_bytes())
        if path is not None and Path(path).exists()
        else trial.get_error()
    )
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, RayActorError):
        return "its driver died"
    lines = str(error).strip().splitlines()
    return next((line for line in lines if line.strip()), type(error).__name__)


def _refuse_what_cannot_fit(what: str, config: RunConfig, nodes: list[Resources]) -> None:
    try:
        bundles_for(config, nodes)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error


def _refuse_other_settings(plan: Plan) -> None:
    """A sweep's folder belongs to one base: its trials would refuse another one by one."""
    saved = plan.folder / "base.yaml"
    if not saved.exists() or not any(plan.folder.glob("t*s/*/checkpoints")):
        return
    # What every trial gets from its point is not the base's to say.
    free = (
        *MAY_CHANGE,
        "run.name",
        "run.seed",
        *(key for key, values in plan.sweep.space.items() if values.when is None),
    )
    changed = [
        f"{key}: {change}"
        for key, change in changed_settings(saved, plan.base).items()
        if not key.startswith(free)
    ]
    if changed:
        raise ConfigError(
            f"{plan.folder} holds a sweep with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Points and seeds may be added; for other settings choose another name, or delete the folder."
        )
