"""The numbers of the report: bands over seeds, surfaces, histograms, reliability bins, the choice of samples.

In: a `Comparison` and `Scores`. Out: plain values, which the template and `report.js` show.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dashboards.report.load import Comparison, Curve, Run
from dashboards.report.samples import Scores
from orchestrator.config.schema import Mark, keys_marked
from orchestrator.config.training import RunConfig
from orchestrator.measures import FIGURES

MAX_CURVE_POINTS = 200
HISTOGRAM_RANGE = (-0.5, 1.5)
HISTOGRAM_BINS = 40
SURFACE_KEYS = ["loss.beta_v", "loss.alpha"]
RELIABILITY_BINS = 10

NOT_COMPARED = frozenset({*keys_marked(RunConfig, Mark.PLACE), "run.seed"})
"""Settings in which runs of one point differ: where a run is kept, and its seed."""


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in the seed alone: one point of settings, and one colour of the curves."""

    label: str
    runs: list[Run]


@dataclass(frozen=True)
class Band:
    """A metric over seeds, by step: mean, smallest and largest value of the runs that reached the step."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Cell:
    """One point of a surface: a mean over the `count` of its `runs` trials that finished."""

    mean: float
    deviation: float
    """Standard deviation; NaN for one trial."""
    count: int
    runs: int
    state: str
    """Where no trial finished, the states of the trials; empty where there is no trial."""


@dataclass(frozen=True)
class Bin:
    """Samples whose clipped score lies between two bounds."""

    low: float
    high: float
    count: int
    score: float
    """Mean clipped score; NaN without samples."""
    correct: float
    """Share of correct ones; NaN without samples."""


@dataclass(frozen=True)
class Ranking:
    """The objective that the runs are compared by, and its value for each run that has one."""

    metric: str
    """An expression of evaluation figures."""
    values: dict[int, float]
    """By index of the run in the comparison."""
    best: set[int]
    """Runs of the best point, or the best run."""
    first: int | None
    """The best single run."""


def ranking(comparison: Comparison) -> Ranking:
    """One sweep alone by its objective, others by (accuracy + F1) / 2, or accuracy where F1 is missing."""
    runs = comparison.runs
    if len(comparison.sweeps) == 1 and all(run.sweep == 0 for run in runs):
        sweep = comparison.sweeps[0]
        values = {number: run.objective for number, run in enumerate(runs) if run.objective is not None}
        best = sweep.best
        members = {number for number, run in enumerate(runs) if best and run.point == best.point}
        first = next((number for number in members if best and runs[number].name == best.trial), None)
        return Ranking(sweep.metric, values, members, first)
    evaluated = {number: run.evaluation for number, run in enumerate(runs) if "accuracy" in run.evaluation}
    with_f1 = all("self_verification_f1" in figures for figures in evaluated.values())
    values = {
        number: (figures["accuracy"] + figures["self_verification_f1"]) / 2
        if with_f1
        else figures["accuracy"]
        for number, figures in evaluated.items()
    }
    metric = "(accuracy + self_verification_f1) / 2" if with_f1 else "accuracy"
    # Figures of different held-out sets do not compare.
    comparable = len({runs[number].set_name for number in values}) == 1
    first = max(values, key=values.__getitem__) if comparable else None
    return Ranking(metric, values, {first} if first is not None and len(values) > 1 else set(), first)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """`loss.beta_v` as `beta_v`, unless another of the keys ends the same way."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def differing_settings(comparison: Comparison) -> list[str]:
    """Dotted keys that tell the runs apart: searched ones, then others whose values differ, then the seed."""
    searched = list(dict.fromkeys(key for sweep in comparison.sweeps for key in sweep.keys))
    whole = [run.settings for run in comparison.runs if len(run.settings) > len(run.point) + 1]
    others = sorted({key for settings in whole for key in settings} - set(searched) - NOT_COMPARED)
    differing = [key for key in others if len({_canonical(settings.get(key)) for settings in whole}) > 1]
    seeds = {run.seed for run in comparison.runs}
    return searched + differing + (["run.seed"] if len(seeds) > 1 else [])


def seed_groups(comparison: Comparison) -> list[SeedGroup]:
    """The runs by their settings, in order of appearance; those of a trial are its point."""
    groups: dict[str, list[Run]] = {}
    for number, run in enumerate(comparison.runs):
        if run.sweep is not None:
            key = _canonical([run.sweep, run.point])
        elif run.settings:
            key = _canonical({key: value for key, value in run.settings.items() if key not in NOT_COMPARED})
        else:
            key = f"run {number}"
        groups.setdefault(key, []).append(run)
    labels = [_group_label(comparison, runs) for runs in groups.values()]
    if len(set(labels)) < len(labels):  # runs of one name in several folders
        labels = [
            f"{label} ({runs[0].folder or number})"
            for number, (label, runs) in enumerate(zip(labels, groups.values(), strict=True))
        ]
    return [SeedGroup(label, runs) for label, runs in zip(labels, groups.values(), strict=True)]


def point_text(point: dict[str, Any], keys: Sequence[str]) -> str:
    """A point of settings in words, such as `beta_v 0.1, alpha 0.5`; `keys` are all searched keys."""
    names = short_names(keys)
    return ", ".join(f"{names.get(key, key)} {value_text(value)}" for key, value in point.items())


def objective_text(metric: str) -> str:
    """An expression of evaluation figures in words, such as `(accuracy + F1) / 2`."""
    labels = {measure.key: measure.label for measure in FIGURES}
    return re.sub(r"[a-z]\w*", lambda name: labels.get(name[0], name[0].replace("_", " ")), metric)


def value_text(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def band(curves: Sequence[Curve]) -> Band:
    """Mean, smallest and largest value of each step over the curves that have one there."""
    steps = sorted({step for curve in curves for step in curve})
    values = [[curve[step] for curve in curves if step in curve] for step in steps]
    return Band(
        steps,
        [math.fsum(at) / len(at) for at in values],
        [min(at) for at in values],
        [max(at) for at in values],
    )


def thinned(curves: Sequence[Curve], largest: bool, limit: int = MAX_CURVE_POINTS) -> list[Curve]:
    """Long curves as at most `limit` points each: the mean, or the largest value, over windows of steps.

    The windows are the same for all curves.
    """
    steps = sorted({step for curve in curves for step in curve})
    if len(steps) <= limit:
        return list(curves)
    width = -(-(steps[-1] - steps[0] + 1) // limit)
    last = {(step - steps[0]) // width: step for step in steps}
    summary: Callable[[list[float]], float] = (
        max if largest else lambda values: math.fsum(values) / len(values)
    )
    found = []
    for curve in curves:
        windows: dict[int, list[float]] = {}
        for step, value in curve.items():
            windows.setdefault((step - steps[0]) // width, []).append(value)
        found.append({last[window]: summary(values) for window, values in windows.items()})
    return found


def surface_axes(keys: Sequence[str]) -> list[str]:
    """The one or two keys of the surface: beta_v and alpha where both are searched, else the first two."""
    return SURFACE_KEYS if set(SURFACE_KEYS) <= set(keys) else list(keys[:2])


def is_continuous(trial_points: Sequence[dict[str, Any]], axes: Sequence[str]) -> bool:
    """Whether the points look drawn from ranges, not lists of values: too scattered for a table of cells."""
    distinct = [{point[key] for point in trial_points if isinstance(point.get(key), float)} for key in axes]
    count = len({_canonical([point.get(key) for key in axes]) for point in trial_points})
    cells = math.prod(len(values) for values in distinct)
    return min(map(len, distinct)) > 4 and (count * 2 < cells if len(axes) == 2 else count > 10)


def axis_values(trial_points: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """The distinct values of a searched key: numbers by size, others in order of appearance."""
    values = list({_canonical(point.get(key)): point.get(key) for point in trial_points}.values())
    numbers = all(isinstance(value, int | float) for value in values)
    return sorted(values) if numbers else values


def cell(trials: Sequence[Run], value: Callable[[Run], float | None]) -> Cell:
    """A surface's cell over its trials. Unfinished ones do not count, since they trained for fewer steps."""
    found = [number for run in trials if run.status == "finished" and (number := value(run)) is not None]
    if not found:
        states = [run.status if run.status != "finished" else "no value" for run in trials]
        return Cell(math.nan, math.nan, 0, len(trials), " / ".join(dict.fromkeys(states)))
    deviation = float(np.std(found, ddof=1)) if len(found) > 1 else math.nan
    return Cell(math.fsum(found) / len(found), deviation, len(found), len(trials), "")


def histograms(scores: Scores) -> tuple[list[float], list[int], list[int]]:
    """Bounds of the bins, and the counts of correct and of wrong samples in them.

    The outermost bins also count the scores beyond them.
    """
    edges = np.linspace(*HISTOGRAM_RANGE, HISTOGRAM_BINS + 1)
    inside = scores.score.clip(*HISTOGRAM_RANGE)
    right = np.histogram(inside[scores.usable & scores.correct], edges)[0]
    wrong = np.histogram(inside[scores.usable & ~scores.correct], edges)[0]
    return edges.round(6).tolist(), right.tolist(), wrong.tolist()


def reliability(
    score: Float[np.ndarray, "samples"], correct: Bool[np.ndarray, "samples"], bins: int = RELIABILITY_BINS
) -> list[Bin]:
    """Equally wide bins of the score clipped to [0, 1], as `expected_calibration_error` makes them.

    Takes scored and verified samples only. Source: Guo et al. (arXiv 1706.04599), figure 1.
    """
    clipped = score.clip(0, 1)
    bin_of = np.minimum((clipped * bins).astype(int), bins - 1)
    found = []
    for number, (low, high) in enumerate(pairwise(np.linspace(0, 1, bins + 1).tolist())):
        inside = bin_of == number
        count = int(inside.sum())
        mean, share = math.nan, math.nan
        if count:
            mean, share = float(clipped[inside].mean()), float(correct[inside].mean())
        found.append(Bin(low, high, count, mean, share))
    return found


def off_by(scores: Scores) -> Float[np.ndarray, "samples"]:
    """Distance of the score, clipped to [0, 1], from the verdict (1 correct, 0 wrong); NaN without both."""
    return np.where(scores.usable, np.abs(scores.score.clip(0, 1) - scores.correct), math.nan)


def choose_samples(scores: Scores, limit: int = 150) -> Int[np.ndarray, "chosen"]:
    """Rows to show: the most confident mistakes first, then those without a score in their own order.

    When there are more than `limit`, a third of the rows are the wrong samples scored furthest off, and a
    third the right ones scored furthest off. Up to a tenth have no score or no verdict. The other rows are
    spread evenly over the remaining samples by score.
    """
    gap = off_by(scores)
    raw_gap = np.abs(
        scores.score - scores.correct
    )  # orders the scores beyond 0 and 1, which clipping makes equal
    ranked = np.lexsort((np.arange(len(gap)), -np.nan_to_num(raw_gap), -np.nan_to_num(gap, nan=-1.0)))
    usable = scores.usable[ranked]
    scored, unscored = ranked[usable], np.sort(ranked[~usable])
    if len(ranked) > limit:
        worst_wrong = scored[~scores.correct[scored]][: limit // 3]
        worst_right = scored[scores.correct[scored]][: limit // 3]
        unscored = _spread(unscored, limit // 10 if len(scored) else limit)
        mistakes = set(worst_wrong.tolist()) | set(worst_right.tolist())
        by_score = scored[np.argsort(scores.score[scored], kind="stable")]
        rest = np.array([row for row in by_score.tolist() if row not in mistakes], int)
        chosen = mistakes | set(_spread(rest, limit - len(mistakes) - len(unscored)).tolist())
        scored = np.array([row for row in scored.tolist() if row in chosen], int)
    return np.concatenate([scored, unscored]).astype(int)


def _spread(rows: Int[np.ndarray, "rows"], count: int) -> Int[np.ndarray, "chosen"]:
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _group_label(comparison: Comparison, runs: list[Run]) -> str:
    first = runs[0]
    if first.sweep is None:
        return (
            first.name
            if len(runs) == 1
            else f"{first.name} and {len(runs) - 1} more seed{'s' * (len(runs) > 2)}"
        )
    sweep = comparison.sweeps[first.sweep]
    label = point_text(first.point, sweep.keys) or sweep.name
    return label if len(comparison.sweeps) == 1 else f"{sweep.name}: {label}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
