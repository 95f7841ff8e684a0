"""Runs and sweeps from their folders, for the report.

In: folders of runs (`metrics.jsonl`) and of sweeps (`results.json`), in any state. Out: a `Comparison`: every
run with its settings, its newest evaluation and its curves. Those of a branched trial begin with its trunk's.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.config.schema import flat_tree
from orchestrator.config.texts import read_yaml
from orchestrator.errors import ConfigError
from orchestrator.storage.folders import RESULTS, branch_of, explained, results_of
from orchestrator.storage.journal import (
    JOURNAL,
    EvaluationEvent,
    NoteEvent,
    StartEvent,
    StatusEvent,
    StepEvent,
    read_events,
)

Curve = dict[int, float]
"""The values of a metric by step."""


@dataclass(frozen=True)
class RunCurves:
    """The content of a run's `metrics.jsonl`. Evaluations are by held-out set and then by figure."""

    training: dict[str, Curve]
    evaluations: dict[str, dict[str, Curve]]
    newest_set: str | None
    status: str
    name: str | None
    warnings: list[str] = field(default_factory=list)
    """What the run noted, such as skipped steps."""

    @property
    def step(self) -> int:
        """The last training step; 0 without one."""
        return max((max(curve) for curve in self.training.values()), default=0)


@dataclass(frozen=True)
class Run:
    """One run or trial."""

    name: str
    folder: Path | None
    """None for a trial that has not started."""
    settings: dict[str, Any]
    """By dotted key; only the point and the seed while there is no `config.yaml`."""
    point: dict[str, Any]
    """The searched settings of a sweep's trial; empty for a run outside a sweep."""
    seed: int | None
    sweep: int | None
    """Index of its sweep in the comparison."""
    status: str
    error: str | None
    step: int
    steps: int | None
    objective: float | None
    set_name: str | None
    """The held-out set of `evaluation`, `base` and `evaluations`."""
    evaluation: dict[str, float]
    """Figures of the newest evaluation."""
    base: dict[str, float]
    """Figures of the evaluation at step 0."""
    training: dict[str, Curve] = field(default_factory=dict, repr=False)
    evaluations: dict[str, Curve] = field(default_factory=dict, repr=False)
    trunk: Path | None = None
    """Folder of the trunk, whose curves these are up to and including step `branch`."""
    branch: int = 0


@dataclass(frozen=True)
class SharedTrunk:
    """Steps that several trials share; they are trained once."""

    name: str
    steps: int
    status: str
    error: str | None


@dataclass(frozen=True)
class BestPoint:
    """The point with the best objective, which is a mean over `seeds` trials; `trial` is the best of them."""

    point: dict[str, Any]
    objective: float
    seeds: int
    trial: str


@dataclass(frozen=True)
class Sweep:
    """What a sweep's `results.json` says about the sweep as a whole."""

    name: str
    metric: str
    """The objective, as an expression of evaluation figures."""
    keys: list[str]
    """Searched settings without the seed."""
    trunks: list[SharedTrunk]
    best: BestPoint | None
    work: dict[str, float]
    seconds: float | None


@dataclass(frozen=True)
class Comparison:
    """All that one page shows."""

    runs: list[Run]
    sweeps: list[Sweep]
    notes: list[str]
    """What the runs noted, and what could not be shown, in words."""


def load_runs(folders: Sequence[Path]) -> Comparison:
    """Read runs and sweeps; a folder named twice is read once.

    Raises:
        ConfigError: No folder is given, or one holds neither a run nor a sweep (such as an evaluation's),
            or a file in it cannot be read.
        RunError: A line of a journal is no event.
    """
    if not folders:
        raise ConfigError(
            "report: no run is given; name folders of runs or of a sweep, such as runs/quickstart"
        )
    runs: list[Run] = []
    sweeps: list[Sweep] = []
    notes: list[str] = []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        kind, results = results_of(folder) or (None, {})
        if kind == "sweep":
            with explained(folder / RESULTS):
                sweep, trials = _load_sweep(folder, results, len(sweeps), notes)
            sweeps.append(sweep)
            runs += trials
        elif (folder / JOURNAL).is_file():
            runs.append(_load_run(folder, notes))
        else:
            raise _refusal(folder, results.get("model") if kind == "evaluation" else None)
    return Comparison(runs, sweeps, notes)


def read_curves(folder: Path) -> RunCurves:
    """The curves of a run's journal. Where a step was trained twice, the first value counts.

    Raises:
        RunError: A line of the journal is no event.
    """
    training: dict[str, Curve] = {}
    evaluations: dict[str, dict[str, Curve]] = {}
    newest_set, status, name = None, "running", None
    warnings: list[str] = []
    for event in read_events(folder):
        match event:
            case StartEvent():
                name = event.run_name
            case StepEvent():
                for key, value in _finite(event.values).items():
                    training.setdefault(key, {}).setdefault(event.step, value)
            case EvaluationEvent():
                newest_set = event.set
                figures = evaluations.setdefault(newest_set, {})
                for key, value in _finite(event.values).items():
                    figure = key.removeprefix(f"eval/{newest_set}/")
                    figures.setdefault(figure, {}).setdefault(event.step, value)
            case NoteEvent():
                warnings.append(f"after step {event.step}: {event.text}")
            case StatusEvent():
                status = event.status.lower()
    return RunCurves(training, evaluations, newest_set, status, name, warnings)


def join(trunk: dict[str, Curve], own: dict[str, Curve], branch: int) -> dict[str, Curve]:
    """The trunk's curves up to step `branch`, and `own` ones, which win where both have a value."""
    return {
        name: {step: value for step, value in trunk.get(name, {}).items() if step <= branch}
        | own.get(name, {})
        for name in dict.fromkeys([*trunk, *own])
    }


def _refusal(folder: Path, evaluated_model: str | None) -> ConfigError:
    if evaluated_model is not None:
        return ConfigError(
            f"{folder}: is the folder of an evaluation (laser eval) of {evaluated_model}, and a report shows "
            "runs and sweeps. Name the folder of the run or sweep instead. The figures of the evaluation are "
            f"in {folder / RESULTS}."
        )
    found = (
        "does not exist"
        if not folder.exists()
        else "is not a folder"
        if not folder.is_dir()
        else "holds no run and no sweep"
    )
    return ConfigError(
        f"{folder}: {found}. Name the folder of a run, which holds {JOURNAL}, or of a sweep, which holds "
        f"{RESULTS} (both lie in run.dir, by default runs/)."
    )


def _load_run(folder: Path, notes: list[str]) -> Run:
    journal = read_curves(folder)
    settings = _settings(folder)
    curves = _joined_curves(folder, journal, journal.newest_set, notes)
    return Run(
        name=journal.name or folder.resolve().name,
        folder=folder,
        settings=settings,
        point={},
        seed=settings.get("run.seed"),
        sweep=None,
        status=journal.status,
        error=None,
        step=max(journal.step, curves["branch"]),
        steps=settings.get("run.steps"),
        objective=None,
        set_name=journal.newest_set,
        evaluation=_newest(journal.evaluations.get(journal.newest_set or "", {})),
        base=_at(curves["evaluations"], 0),
        **curves,
    )


def _load_sweep(
    folder: Path, results: dict[str, Any], number: int, notes: list[str]
) -> tuple[Sweep, list[Run]]:
    trials = [_load_trial(folder, trial, number, results.get("set"), notes) for trial in results["trials"]]
    best = results.get("best")
    sweep = Sweep(
        name=results["name"],
        metric=results["metric"],
        keys=list(results["keys"]),
        trunks=[
            SharedTrunk(trunk["name"], trunk["steps"], trunk["status"], trunk.get("error"))
            for trunk in results.get("trunks", [])
        ],
        best=BestPoint(best["point"], best["objective"], best["seeds"], best["trial"]) if best else None,
        work=_finite(results.get("work") or {}),
        seconds=results.get("seconds"),
    )
    return sweep, trials


def _load_trial(
    sweep_folder: Path, trial: dict[str, Any], sweep: int, set_name: str | None, notes: list[str]
) -> Run:
    folder = sweep_folder / trial["folder"]
    has_journal = (folder / JOURNAL).is_file()
    journal = read_curves(folder) if has_journal else RunCurves({}, {}, None, trial["status"], None)
    set_name = set_name or journal.newest_set
    curves = _joined_curves(folder, journal, set_name, notes)
    return Run(
        name=trial["name"],
        folder=folder if folder.is_dir() else None,
        settings={"run.seed": trial.get("seed")} | trial["point"] | _settings(folder),
        point=dict(trial["point"]),
        seed=trial.get("seed"),
        sweep=sweep,
        status=trial["status"],
        error=trial.get("error"),
        step=max(trial.get("step") or 0, journal.step),
        steps=trial.get("steps"),
        objective=_finite({"objective": trial.get("objective")}).get("objective"),
        set_name=set_name,
        evaluation=_finite(trial.get("metrics") or {})
        or _newest(journal.evaluations.get(set_name or "", {})),
        base=_at(curves["evaluations"], 0),
        **curves,
    )


def _joined_curves(
    folder: Path, journal: RunCurves, set_name: str | None, notes: list[str]
) -> dict[str, Any]:
    """A run's curves as arguments of `Run`, joined to those of its trunk if it has one."""
    notes += [f"{folder.resolve().name}, {warning}" for warning in journal.warnings]
    own_evaluations = journal.evaluations.get(set_name or "", {})
    alone = {"training": journal.training, "evaluations": own_evaluations, "trunk": None, "branch": 0}
    if not (folder / "branch.json").is_file():
        return alone
    place, branch = branch_of(folder)
    trunk = (folder / place).resolve()
    if not (trunk / JOURNAL).is_file():
        notes.append(
            f"{folder.name}: its trunk {place} is not there, so its curves begin after step {branch}."
        )
        return alone
    shared = read_curves(trunk)
    return {
        "training": join(shared.training, journal.training, branch),
        "evaluations": join(shared.evaluations.get(set_name or "", {}), own_evaluations, branch),
        "trunk": trunk,
        "branch": branch,
    }


def _newest(curves: dict[str, Curve]) -> dict[str, float]:
    """The figures of the last evaluated step; none is taken from an older step."""
    return _at(curves, max((step for curve in curves.values() for step in curve), default=0))


def _at(curves: dict[str, Curve], step: int) -> dict[str, float]:
    return {name: curve[step] for name, curve in curves.items() if step in curve}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    return flat_tree(read_yaml(path, "Restore the file, or delete it to show the run without its settings."))


def _finite(values: dict[str, Any]) -> dict[str, float]:
    """Without values that are not finite, which earlier versions wrote as the largest number."""
    return {
        name: float(value)
        for name, value in values.items()
        if value is not None and abs(float(value)) < sys.float_info.max
    }
