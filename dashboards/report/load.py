"""Runs and sweeps as their folders hold them, for the report.

In: folders of runs (`metrics.jsonl`) and of sweeps (`results.json`), finished, failed or still going on. Out: a `Report`: every run
with its settings, its curves (those of a branched trial joined to its trunk's) and its newest evaluation.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from jaxtyping import Bool, Float, Int

from orchestrator.errors import ConfigError
from orchestrator.folders import RESULTS, results_of
from orchestrator.journal import read_events

Curve = dict[int, float]
"""A metric's value by step."""

IDENTITY = frozenset({"run.name", "run.dir", "tracking.uri"})
"""Settings that say where a run is kept, not what it does."""

UNVERIFIED = ("timeout", "error")
"""Verdicts that count neither as right nor as wrong."""


@dataclass(frozen=True)
class Journal:
    """What a run's `metrics.jsonl` says: curves by metric name, those of evaluations by set and then by figure."""

    training: dict[str, Curve]
    evaluations: dict[str, dict[str, Curve]]
    newest_set: str | None
    status: str
    name: str | None

    @property
    def step(self) -> int:
        """The last step in it; 0 when there is none."""
        return max((max(curve) for curve in self.training.values()), default=0)


@dataclass(frozen=True)
class Run:
    """One run or trial. `evaluations` are the curves of the set `set_name`, `evaluation` their newest figures, `base` those of step 0."""

    name: str
    folder: Path | None
    """None for a trial that has not begun."""
    settings: dict[str, Any]
    """Flat, by dotted key; only the point and the seed as long as there is no `config.yaml`."""
    point: dict[str, Any]
    """The searched settings of a sweep's trial; empty for a run of its own."""
    seed: int | None
    sweep: int | None
    """Number of its sweep in the report."""
    status: str
    error: str | None
    step: int
    steps: int | None
    objective: float | None
    set_name: str | None
    evaluation: dict[str, float]
    base: dict[str, float]
    training: dict[str, Curve] = field(default_factory=dict, repr=False)
    evaluations: dict[str, Curve] = field(default_factory=dict, repr=False)
    trunk: Path | None = None
    """Folder of the trunk that the curves up to and including step `branch` come from."""
    branch: int = 0


@dataclass(frozen=True)
class Trunk:
    """Steps that several trials share, trained once."""

    name: str
    steps: int
    status: str
    error: str | None


@dataclass(frozen=True)
class Best:
    """The point with the best objective, a mean over `seeds` trials, of which `trial` did best."""

    point: dict[str, Any]
    objective: float
    seeds: int
    trial: str


@dataclass(frozen=True)
class Sweep:
    name: str
    metric: str
    """The objective, as an expression of evaluation figures."""
    keys: list[str]
    """Searched settings, the seed not among them."""
    trunks: list[Trunk]
    best: Best | None
    work: dict[str, float]
    seconds: float | None


@dataclass(frozen=True)
class Report:
    runs: list[Run]
    sweeps: list[Sweep]
    notes: list[str]
    """What could not be shown, in words."""


@dataclass(frozen=True)
class Scores:
    """The samples of one evaluation, a row each, without their texts; `score` is NaN where there is none."""

    path: Path
    set_name: str
    step: int
    status: list[str]
    score: Float[np.ndarray, "samples"]
    finished: Bool[np.ndarray, "samples"]

    @property
    def correct(self) -> Bool[np.ndarray, "samples"]:
        return np.array([status == "correct" for status in self.status], bool)

    @property
    def verified(self) -> Bool[np.ndarray, "samples"]:
        return np.array([status not in UNVERIFIED for status in self.status], bool)

    @property
    def usable(self) -> Bool[np.ndarray, "samples"]:
        """Samples with both a score and a verdict."""
        return self.verified & self.finished & ~np.isnan(self.score)

    def solutions(self, rows: Int[np.ndarray, "chosen"]) -> list[dict[str, Any]]:
        """Problem, reference, response, answer and length in tokens of some rows."""
        columns = ["problem", "reference", "response", "answer", "tokens"]
        return pq.read_table(self.path, columns=columns).take(rows).to_pylist()


def load_runs(folders: Sequence[Path]) -> Report:
    """Read runs and sweeps; a folder named twice is read once.

    Raises:
        ConfigError: No folder is given, or one holds neither a run nor a sweep (such as that of an evaluation), or a
            file in it cannot be read.
        RunError: A line of a journal is no event.
    """
    if not folders:
        raise ConfigError("report: no run is given; name folders of runs or of a sweep, such as runs/quickstart")
    runs: list[Run] = []
    sweeps: list[Sweep] = []
    notes: list[str] = []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        kind, results = results_of(folder) or (None, {})
        if kind == "sweep":
            sweep, trials = _load_sweep(folder, results, len(sweeps), notes)
            sweeps.append(sweep)
            runs += trials
        elif (folder / "metrics.jsonl").is_file():
            runs.append(_load_run(folder, notes))
        elif kind == "evaluation":
            raise ConfigError(
                f"{folder}: is the folder of an evaluation (laser eval) of {results.get('model')}, and a report shows runs "
                "and sweeps. Name the folder of the run or sweep instead. The figures of the evaluation are in "
                f"{folder / RESULTS}."
            )
        else:
            found = "does not exist" if not folder.exists() else "is not a folder" if not folder.is_dir() else "holds neither"
            raise ConfigError(
                f"{folder}: {found}. Name the folder of a run, which holds metrics.jsonl, or of a sweep, which holds results.json "
                "(both lie in run.dir, by default runs/)."
            )
    return Report(runs, sweeps, notes)


def newest_scores(run: Run) -> Scores | None:
    """The newest evaluation on the run's set that has scores, else the newest one; None when no samples were kept.

    Raises:
        ConfigError: A file cannot be read.
    """
    if run.folder is None:
        return None
    files = sorted((found for path in (run.folder / "evaluations").glob("*.parquet") if (found := _set_and_step(path))), reverse=True)
    newest: Scores | None = None
    for step, set_name, path in files:
        if run.set_name not in (None, set_name):
            continue
        scores = _read_scores(path, set_name, step)
        if scores.usable.any():
            return scores
        newest = newest or scores
    return newest


def read_journal(folder: Path) -> Journal:
    """The curves of a run's journal; the first value counts where a step was trained again.

    Raises:
        RunError: A line of it is no event.
    """
    training: dict[str, Curve] = {}
    evaluations: dict[str, dict[str, Curve]] = {}
    newest_set, status, name = None, "running", None
    for event in read_events(folder):
        kind = event["event"]
        if kind == "start":
            name = event.get("run_name")
        elif kind == "step":
            for key, value in _finite(event["values"]).items():
                training.setdefault(key, {}).setdefault(event["step"], value)
        elif kind == "evaluation":
            newest_set = event["set"]
            figures = evaluations.setdefault(newest_set, {})
            for key, value in _finite(event["values"]).items():
                figures.setdefault(key.removeprefix(f"eval/{newest_set}/"), {}).setdefault(event["step"], value)
        elif kind == "status":
            status = event["status"].lower()
    return Journal(training, evaluations, newest_set, status, name)


def flat_tree(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"loss": {"alpha": 0.1}}` as `{"loss.alpha": 0.1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flat_tree(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _load_run(folder: Path, notes: list[str]) -> Run:
    journal = read_journal(folder)
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


def _load_sweep(folder: Path, results: dict[str, Any], number: int, notes: list[str]) -> tuple[Sweep, list[Run]]:
    trials = [_load_trial(folder, trial, number, results.get("set"), notes) for trial in results["trials"]]
    best = results.get("best")
    sweep = Sweep(
        name=results["name"],
        metric=results["metric"],
        keys=list(results["keys"]),
        trunks=[Trunk(trunk["name"], trunk["steps"], trunk["status"], trunk.get("error")) for trunk in results.get("trunks", [])],
        best=Best(best["point"], best["objective"], best["seeds"], best["trial"]) if best else None,
        work=_finite(results.get("work") or {}),
        seconds=results.get("seconds"),
    )
    return sweep, trials


def _load_trial(sweep_folder: Path, trial: dict[str, Any], sweep: int, set_name: str | None, notes: list[str]) -> Run:
    folder = sweep_folder / trial["folder"]
    has_journal = (folder / "metrics.jsonl").is_file()
    journal = read_journal(folder) if has_journal else Journal({}, {}, None, trial["status"], None)
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
        evaluation=_finite(trial.get("metrics") or {}) or _newest(journal.evaluations.get(set_name or "", {})),
        base=_at(curves["evaluations"], 0),
        **curves,
    )


def _joined_curves(folder: Path, journal: Journal, set_name: str | None, notes: list[str]) -> dict[str, Any]:
    """A run's curves as arguments of `Run`: up to the branch its trunk's, where it has one, then its own."""
    own_evaluations = journal.evaluations.get(set_name or "", {})
    alone = {"training": journal.training, "evaluations": own_evaluations, "trunk": None, "branch": 0}
    if not (folder / "branch.json").is_file():
        return alone
    branch = _read_json(folder / "branch.json")
    trunk = (folder / branch["trunk"]).resolve()
    if not (trunk / "metrics.jsonl").is_file():
        notes.append(f"{folder.name}: its trunk {branch['trunk']} is not there, so its curves begin after step {branch['step']}.")
        return alone
    shared = read_journal(trunk)
    return {
        "training": join(shared.training, journal.training, branch["step"]),
        "evaluations": join(shared.evaluations.get(set_name or "", {}), own_evaluations, branch["step"]),
        "trunk": trunk,
        "branch": branch["step"],
    }


def join(trunk: dict[str, Curve], own: dict[str, Curve], branch: int) -> dict[str, Curve]:
    """Curves that are the trunk's up to and including step `branch`, and `own` from there on; `own` wins where both have a value."""
    return {
        name: {step: value for step, value in trunk.get(name, {}).items() if step <= branch} | own.get(name, {})
        for name in dict.fromkeys([*trunk, *own])
    }


def _newest(curves: dict[str, Curve]) -> dict[str, float]:
    """The figures of the last evaluated step: one that this evaluation left undefined is not filled in from an older one."""
    return _at(curves, max((step for curve in curves.values() for step in curve), default=0))


def _at(curves: dict[str, Curve], step: int) -> dict[str, float]:
    return {name: curve[step] for name, curve in curves.items() if step in curve}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    return flat_tree(tree) if isinstance(tree, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: is no JSON ({error}). The command that wrote it writes it anew when it goes on.") from error


def _finite(values: dict[str, Any]) -> dict[str, float]:
    """Without what is undefined or infinite, which a journal writes as the largest number."""
    return {name: float(value) for name, value in values.items() if value is not None and abs(value) < sys.float_info.max}


def _set_and_step(path: Path) -> tuple[int, str, Path] | None:
    found = re.fullmatch(r"(.+)-(\d{6,})", path.stem)
    return (int(found[2]), found[1], path) if found else None


def _read_scores(path: Path, set_name: str, step: int) -> Scores:
    try:
        table = pq.read_table(path, columns=["status", "score", "finished"])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as an evaluation's samples ({error}). Delete it to leave it out.") from error
    # A null score and NaN say the same: there is none.
    score = table["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    return Scores(path, set_name, step, table["status"].to_pylist(), score, table["finished"].to_numpy(zero_copy_only=False).astype(bool))
