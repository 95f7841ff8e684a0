"""The state of a sweep's runs: the ledger that a killed sweep resumes from, and the outcome.

The ledger is `results.json` in the sweep's folder, written whenever a run changes its state. The runs' own
folders hold all else.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.config.formula import Formula, NotDefined
from orchestrator.errors import ConfigError
from orchestrator.storage.files import write_atomically
from orchestrator.storage.folders import branch_of
from orchestrator.storage.journal import JOURNAL, last_step, saved_run_id
from orchestrator.sweeps.plan import Member


class State(StrEnum):
    """What became of a trial so far."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    """Stopped early, because other trials did better."""
    FAILED = "failed"


OVER = (State.FINISHED, State.PRUNED, State.FAILED)


@dataclass
class Trial:
    """One trial of a sweep, and its progress."""

    name: str
    folder: str
    """Relative to the sweep's folder."""
    point: dict[str, Any]
    seed: int
    steps: int
    status: State = State.PENDING
    step: int = 0
    objective: float | None = None
    """The metric at the newest evaluation. None before the first one, and where the metric is not defined."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Figures of the newest evaluation."""
    error: str | None = None
    mlflow_run_id: str | None = None
    trunk: str | None = None
    branch_step: int = 0
    """The trunk's steps, which the trial did not train itself."""


@dataclass
class Trunk:
    """A run whose steps several trials share, and its progress."""

    name: str
    folder: str
    steps: int
    status: State = State.PENDING
    step: int = 0
    error: str | None = None
    mlflow_run_id: str | None = None


@dataclass(frozen=True)
class SweepBest:
    """The point with the largest mean metric over its finished seeds."""

    point: dict[str, Any]
    objective: float
    seeds: int
    trial: str
    """Name of the point's best trial, whose weights are registered."""


@dataclass(frozen=True)
class SweepWork:
    """Training steps of a sweep, and of the same trials without trunks."""

    steps_trained: int
    steps_independent: int

    @property
    def share(self) -> float:
        return self.steps_trained / self.steps_independent if self.steps_independent else 1.0


def objective(metric: Formula, figures: Mapping[str, float | None]) -> float | None:
    """The metric's value. None where the metric, or a figure that it uses, is not defined."""
    numbers = {name: value for name, value in figures.items() if value is not None and not math.isnan(value)}
    if not metric.names <= set(numbers):
        return None
    try:
        value = metric.number(numbers)
    except NotDefined:
        return None
    return value if math.isfinite(value) else None


class Ledger:
    """The runs of a sweep and their states.

    Args:
        keys: The searched keys, in the order of the sweep's file.
        metric: The formula to maximise.
        evaluation_set: Name of the held-out set in metrics.
        planned: Number of trials that the sweep will have at its end.

    Attributes:
        trials, trunks, members: The runs by name, and the plan's entry of each.
        before: The runs by kind and name as the file had them when it was read.
        seconds: Duration of all calls of the sweep.

    Raises:
        ConfigError: `results.json` exists and cannot be read.
    """

    def __init__(
        self, folder: Path, name: str, keys: Iterable[str], metric: str, evaluation_set: str, planned: int = 0
    ) -> None:
        self.folder = folder
        self.name = name
        self.keys = list(keys)
        self.metric = Formula(metric)
        self.evaluation_set = evaluation_set
        self.planned = planned
        self.path = folder / "results.json"
        self.trials: dict[str, Trial] = {}
        self.trunks: dict[str, Trunk] = {}
        self.members: dict[str, Member] = {}
        self.seconds = 0.0
        self.before = self._read()
        self._last_evaluated: dict[str, int] = {}
        """Step of each trial's newest evaluation in this call."""

    @property
    def runs(self) -> list[Trial | Trunk]:
        """The trunks, then the trials."""
        return [*self.trunks.values(), *self.trials.values()]

    def run_of(self, member: Member) -> Trial | Trunk:
        """The run of a member, which is added if the ledger does not have it."""
        known: Mapping[str, Trial | Trunk] = self.trunks if member.is_trunk else self.trials
        return known.get(member.name) or self.add(member)

    def add(self, member: Member) -> Trial | Trunk:
        """Add a run of the plan with its state from earlier calls. An interrupted run is pending again."""
        self.members[member.name] = member
        folder, steps = f"{'trunks' if member.is_trunk else 'trials'}/{member.name}", member.config.run.steps
        kind: type[Trial | Trunk] = Trunk if member.is_trunk else Trial
        known = self.before["trunks" if member.is_trunk else "trials"].get(member.name, {})
        if not (self.folder / folder / JOURNAL).exists():
            known = {}  # the run has not started, or its folder was deleted
        run: Trial | Trunk
        if member.is_trunk:
            run = self.trunks[member.name] = Trunk(member.name, folder, steps)
        else:
            run = self.trials[member.name] = Trial(
                member.name, folder, member.point, member.seed, steps, trunk=member.trunk
            )
        for key in ("status", "step", "metrics", "error", "mlflow_run_id", "branch_step"):
            if key in known and key in kind.__dataclass_fields__:
                setattr(run, key, known[key])
        run.status = State(run.status)
        finished = (
            run.status is State.FINISHED
            and run.step == steps
            and (self.folder / folder / "summary.json").exists()
        )
        if run.status is not State.PRUNED and not finished:
            run.status, run.error = State.PENDING, None
        if isinstance(run, Trial):
            run.objective = self.objective(run.metrics)
        return run

    def objective(self, figures: Mapping[str, float | None]) -> float | None:
        """The metric of an evaluation. None where the metric, or a figure that it uses, is not defined."""
        return objective(self.metric, figures)

    def evaluated(self, trial: Trial, step: int, figures: Mapping[str, float | None]) -> bool:
        """Record a trial's evaluation.

        Args:
            figures: A figure that is not defined is NaN during training, and None in a summary.

        Returns:
            False when it is already the trial's newest evaluation. A resumed trial makes up the evaluation of
            its checkpoint where that was due, and a finished trial reports its last evaluation again.
        """
        is_new = self._last_evaluated.get(trial.name) != step
        self._last_evaluated[trial.name] = step
        trial.step = step
        trial.metrics = {
            name: None if value is None or math.isnan(value) else value for name, value in figures.items()
        }
        trial.objective = self.objective(trial.metrics)
        return is_new

    def look(self, run: Trial | Trunk) -> None:
        """Update a run's step, branch and MLflow run from its folder."""
        folder = self.folder / run.folder
        if isinstance(run, Trial) and (folder / "branch.json").exists():
            run.branch_step = branch_of(folder)[1]
        run.step = max(run.step, last_step(folder), getattr(run, "branch_step", 0))
        run.mlflow_run_id = saved_run_id(folder)

    def best(self) -> SweepBest | None:
        """The point with the best mean over its seeds, among the points with the most finished seeds."""
        by_point: dict[str, list[Trial]] = {}
        for trial in self.trials.values():
            if trial.status is State.FINISHED and trial.objective is not None:
                by_point.setdefault(json.dumps(trial.point), []).append(trial)
        if not by_point:
            return None
        most = max(map(len, by_point.values()))
        means = {
            key: sum(trial.objective or 0.0 for trial in trials) / most
            for key, trials in by_point.items()
            if len(trials) == most
        }
        key = max(means, key=lambda key: means[key])
        best_trial = max(by_point[key], key=lambda trial: trial.objective or 0.0)
        return SweepBest(best_trial.point, means[key], most, best_trial.name)

    def work(self) -> SweepWork:
        """Steps trained so far, and the steps that the trials would have trained without trunks.

        A trial that has trained no step counts in neither.
        """
        trained = [trial for trial in self.trials.values() if trial.step > trial.branch_step]
        shared = sum(trial.step - trial.branch_step for trial in trained)
        return SweepWork(
            shared + sum(trunk.step for trunk in self.trunks.values()), sum(trial.step for trial in trained)
        )

    def save(self) -> None:
        """Write `results.json`."""
        best, work = self.best(), self.work()
        tree = {
            "name": self.name,
            "metric": self.metric.text,
            "set": self.evaluation_set,
            "keys": self.keys,
            "trials": [asdict(trial) for trial in self.trials.values()],
            "trunks": [asdict(trunk) for trunk in self.trunks.values()],
            "best": None if best is None else asdict(best),
            "work": asdict(work) | {"share": round(work.share, 4)},
            "seconds": round(self.seconds, 1),
        }
        write_atomically(self.path, json.dumps(tree, indent=2) + "\n")

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        if not self.path.exists():
            return {"trials": {}, "trunks": {}}
        try:
            tree = json.loads(self.path.read_bytes())
            self.seconds = float(tree["seconds"])
            for run in (*tree["trials"], *tree["trunks"]):
                State(run["status"]), int(run["step"]), dict(run.get("metrics", {}))
            return {kind: {run["name"]: run for run in tree[kind]} for kind in ("trials", "trunks")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.path}: cannot be read ({error}). Delete it: the trials keep their own progress"
            ) from error


@dataclass(frozen=True)
class SweepOutcome:
    """The result of a sweep."""

    folder: Path
    trials: list[Trial]
    best: SweepBest | None
    work: SweepWork
    model: str | None
    """The best trial's weights in MLflow's registry, `models:/NAME@best`; None when not registered."""
    report: Path | None
    """None when the report could not be written."""

    @property
    def failed(self) -> list[Trial]:
        """The trials that failed."""
        return [trial for trial in self.trials if trial.status is State.FAILED]
