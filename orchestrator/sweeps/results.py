"""What has become of a sweep's runs: the ledger that a sweep goes on with after a kill, and its answer in the end.

`results.json` in the sweep's folder is written anew whenever a run changes its state; the runs' own folders hold the rest.
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
from orchestrator.storage.journal import JOURNAL, last_step, saved_run_id
from orchestrator.sweeps.plan import Member


class State(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    """Stopped early, because others did better."""
    FAILED = "failed"


OVER = (State.FINISHED, State.PRUNED, State.FAILED)


@dataclass
class Trial:
    """One trial of a sweep, as far as it has come."""

    name: str
    folder: str
    """Relative to the sweep's."""
    point: dict[str, Any]
    seed: int
    steps: int
    status: State = State.PENDING
    step: int = 0
    objective: float | None = None
    """The metric at the newest evaluation; None while there is none, or where its figures are not defined."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Figures of the newest evaluation."""
    error: str | None = None
    mlflow_run_id: str | None = None
    trunk: str | None = None
    branch_step: int = 0
    """Steps that its trunk has trained for it."""


@dataclass
class Trunk:
    """The steps that some trials share."""

    name: str
    folder: str
    steps: int
    status: State = State.PENDING
    step: int = 0
    error: str | None = None
    mlflow_run_id: str | None = None


@dataclass(frozen=True)
class Best:
    """The point with the largest mean metric over its finished seeds."""

    point: dict[str, Any]
    objective: float
    seeds: int
    trial: str
    """Its best single trial, whose weights are registered."""


@dataclass(frozen=True)
class Work:
    """Training steps of a sweep, against those of the same runs without a trunk."""

    steps_trained: int
    steps_independent: int

    @property
    def share(self) -> float:
        return self.steps_trained / self.steps_independent if self.steps_independent else 1.0


def objective(metric: Formula, figures: Mapping[str, float | None]) -> float | None:
    """The metric's value; None where a figure that it uses is not defined, or the formula is not for these figures."""
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

    Raises:
        ConfigError: `results.json` is there and cannot be read.
    """

    def __init__(
        self, folder: Path, name: str, keys: Iterable[str], metric: str, evaluation_set: str, planned: int = 0
    ) -> None:
        self.folder, self.name, self.keys, self.evaluation_set = folder, name, list(keys), evaluation_set
        self.metric = Formula(metric)
        self.trials: dict[str, Trial] = {}
        self.trunks: dict[str, Trunk] = {}
        self.seconds = 0.0
        self.planned = planned
        """Trials that the sweep is to have in the end."""
        self.path = folder / "results.json"
        self.before = self._read()

    def add(self, member: Member) -> Trial | Trunk:
        """Take in a run of the plan, with what is known of it from before; one that was cut off is pending again."""
        folder, steps = f"{'trunks' if member.is_trunk else 'trials'}/{member.name}", member.config.run.steps
        kind: type[Trial | Trunk] = Trunk if member.is_trunk else Trial
        known = self.before["trunks" if member.is_trunk else "trials"].get(member.name, {})
        if not (self.folder / folder / JOURNAL).exists():
            known = {}  # it has not begun, or its folder was deleted
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
        """The metric of an evaluation; None where a figure that it uses is not defined."""
        return objective(self.metric, figures)

    def evaluated(self, trial: Trial, step: int, figures: Mapping[str, float | None]) -> None:
        """Take in a trial's evaluation. Figures that are not defined are NaN on the way and None in a summary."""
        trial.step = step
        trial.metrics = {
            name: None if value is None or math.isnan(value) else value for name, value in figures.items()
        }
        trial.objective = self.objective(trial.metrics)

    def look(self, run: Trial | Trunk) -> None:
        """Bring a run's step and MLflow run up to what its folder says."""
        folder = self.folder / run.folder
        if isinstance(run, Trial) and (folder / "branch.json").exists():
            run.branch_step = json.loads((folder / "branch.json").read_text())["step"]
        run.step = max(run.step, last_step(folder), getattr(run, "branch_step", 0))
        run.mlflow_run_id = saved_run_id(folder)

    def best(self) -> Best | None:
        """The best point: by the mean over its seeds, among the points with the most finished seeds."""
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
        return Best(best_trial.point, means[key], most, best_trial.name)

    def work(self) -> Work:
        """Steps trained so far, and what the trials would have taken alone; one that has trained nothing yet counts nowhere."""
        trained = [trial for trial in self.trials.values() if trial.step > trial.branch_step]
        shared = sum(trial.step - trial.branch_step for trial in trained)
        return Work(
            shared + sum(trunk.step for trunk in self.trunks.values()), sum(trial.step for trial in trained)
        )

    def save(self) -> None:
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
            tree = json.loads(self.path.read_text())
            self.seconds = tree["seconds"]
            return {kind: {run["name"]: run for run in tree[kind]} for kind in ("trials", "trunks")}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.path}: cannot be read ({error}); delete it: the trials' own folders hold what they have done"
            ) from error


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep found."""

    folder: Path
    trials: list[Trial]
    best: Best | None
    work: Work
    model: str | None
    """The best trial's weights in MLflow's registry, `models:/NAME@best`."""
    report: Path | None

    @property
    def failed(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status is State.FAILED]
