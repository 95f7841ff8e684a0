"""The numbers that the report's figures show: bands over seeds, surfaces, histograms, reliability bins, and which samples to show.

In: what `load` loaded. Out: plain values; how they are drawn is `report.js`'s business.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dashboards.report.load import IDENTITY, Curve, Report, Run, Scores

MAX_CURVE_POINTS = 200
HISTOGRAM_RANGE = (-0.5, 1.5)
HISTOGRAM_BINS = 40
SURFACE_KEYS = ["loss.beta_v", "loss.alpha"]


@dataclass(frozen=True)
class Point:
    """Runs of the same settings, apart from the seed: one colour of the curves."""

    label: str
    runs: list[Run]


@dataclass(frozen=True)
class Band:
    """A metric over seeds, by step: mean, smallest and largest of those that got there."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Cell:
    """One point of a surface: mean over the `count` of `runs` trials that finished, and their standard deviation (NaN for one)."""

    mean: float
    deviation: float
    count: int
    runs: int
    state: str
    """What is said where no trial finished: failed, pruned, running or pending; empty where there is no trial at all."""


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
class Objective:
    """What the runs are compared by: each one's value, where it has one, and the expression in words."""

    metric: str
    values: dict[int, float]
    """By number of the run in the report."""
    best: set[int]
    """Runs of the best point, or the best run."""
    first: int | None
    """The best single run."""


def objective(report: Report) -> Objective:
    """A sweep's own objective when there is nothing but this sweep, else (accuracy + F1) / 2, or accuracy when a run has no F1."""
    if len(report.sweeps) == 1 and all(run.sweep == 0 for run in report.runs):
        values = {number: run.objective for number, run in enumerate(report.runs) if run.objective is not None}
        best = report.sweeps[0].best
        members = {number for number, run in enumerate(report.runs) if best and run.point == best.point}
        first = next((number for number in members if best and report.runs[number].name == best.trial), None)
        return Objective(report.sweeps[0].metric, values, members, first)
    evaluated = {number: run.evaluation for number, run in enumerate(report.runs) if "accuracy" in run.evaluation}
    with_f1 = all("self_verification_f1" in figures for figures in evaluated.values())
    values = {
        number: (figures["accuracy"] + figures["self_verification_f1"]) / 2 if with_f1 else figures["accuracy"]
        for number, figures in evaluated.items()
    }
    metric = "(accuracy + self_verification_f1) / 2" if with_f1 else "accuracy"
    # Figures of different held-out sets do not compare.
    comparable = len({report.runs[number].set_name for number in values}) == 1
    first = max(values, key=values.__getitem__) if comparable else None
    return Objective(metric, values, {first} if first is not None and len(values) > 1 else set(), first)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """`loss.beta_v` as `beta_v`, unless another of the keys ends the same way."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def differing_settings(report: Report) -> list[str]:
    """Dotted keys that tell the runs apart: the searched ones first, then others whose values differ, the seed last."""
    searched = list(dict.fromkeys(key for sweep in report.sweeps for key in sweep.keys))
    whole = [run.settings for run in report.runs if len(run.settings) > len(run.point) + 1]
    others = sorted({key for settings in whole for key in settings} - set(searched) - IDENTITY - {"run.seed"})
    differing = [key for key in others if len({_canonical(settings.get(key)) for settings in whole}) > 1]
    seeds = {run.seed for run in report.runs}
    return searched + differing + (["run.seed"] if len(seeds) > 1 else [])


def points(report: Report) -> list[Point]:
    """The runs by their settings, in the order of first appearance; a trial is told by its point, another run by all its settings."""
    groups: dict[str, list[Run]] = {}
    for number, run in enumerate(report.runs):
        if run.sweep is not None:
            key = _canonical([run.sweep, run.point])
        elif run.settings:
            key = _canonical({key: value for key, value in run.settings.items() if key not in IDENTITY | {"run.seed"}})
        else:
            key = f"run {number}"
        groups.setdefault(key, []).append(run)
    labels = [_point_label(report, runs) for runs in groups.values()]
    if len(set(labels)) < len(labels):  # runs of one name in several folders
        labels = [f"{label} ({runs[0].folder or number})" for number, (label, runs) in enumerate(zip(labels, groups.values(), strict=True))]
    return [Point(label, runs) for label, runs in zip(labels, groups.values(), strict=True)]


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
    return Band(steps, [math.fsum(at) / len(at) for at in values], [min(at) for at in values], [max(at) for at in values])


def thinned(curves: Sequence[Curve], largest: bool, limit: int = MAX_CURVE_POINTS) -> list[Curve]:
    """Long curves as at most `limit` points each: the mean (or the largest value) over windows of steps, the same windows for all."""
    steps = sorted({step for curve in curves for step in curve})
    if len(steps) <= limit:
        return list(curves)
    width = -(-(steps[-1] - steps[0] + 1) // limit)
    last = {(step - steps[0]) // width: step for step in steps}
    summary: Callable[[list[float]], float] = max if largest else lambda values: math.fsum(values) / len(values)
    found = []
    for curve in curves:
        windows: dict[int, list[float]] = {}
        for step, value in curve.items():
            windows.setdefault((step - steps[0]) // width, []).append(value)
        found.append({last[window]: summary(values) for window, values in windows.items()})
    return found


def surface_axes(keys: Sequence[str]) -> list[str]:
    """The one or two searched keys that the surface is drawn over: beta_v and alpha where both are searched, else the first two."""
    return SURFACE_KEYS if set(SURFACE_KEYS) <= set(keys) else list(keys[:2])


def is_continuous(trial_points: Sequence[dict[str, Any]], axes: Sequence[str]) -> bool:
    """Whether the points look drawn from ranges, and not from lists of values: too scattered for a table of cells."""
    distinct = [{point[key] for point in trial_points if isinstance(point.get(key), float)} for key in axes]
    count = len({_canonical([point.get(key) for key in axes]) for point in trial_points})
    cells = math.prod(len(values) for values in distinct)
    return min(map(len, distinct)) > 4 and (count * 2 < cells if len(axes) == 2 else count > 10)


def axis_values(trial_points: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """The distinct values of a searched key: numbers by size, others as they come."""
    values = list({_canonical(point.get(key)): point.get(key) for point in trial_points}.values())
    numbers = all(isinstance(value, int | float) for value in values)
    return sorted(values) if numbers else values


def cell(trials: Sequence[Run], value: Callable[[Run], float | None]) -> Cell:
    """What a cell of a surface says of the trials that fall in it; unfinished ones do not count, as their steps are fewer."""
    found = [number for run in trials if run.status == "finished" and (number := value(run)) is not None]
    if not found:
        states = [run.status if run.status != "finished" else "no value" for run in trials]
        return Cell(math.nan, math.nan, 0, len(trials), " / ".join(dict.fromkeys(states)))
    deviation = float(np.std(found, ddof=1)) if len(found) > 1 else math.nan
    return Cell(math.fsum(found) / len(found), deviation, len(found), len(trials), "")


def histograms(scores: Scores) -> tuple[list[float], list[int], list[int]]:
    """Bounds of the bins and the counts of correct and of wrong samples in them; what lies beyond is counted in the outermost."""
    edges = np.linspace(*HISTOGRAM_RANGE, HISTOGRAM_BINS + 1)
    inside = scores.score.clip(*HISTOGRAM_RANGE)
    right = np.histogram(inside[scores.usable & scores.correct], edges)[0]
    wrong = np.histogram(inside[scores.usable & ~scores.correct], edges)[0]
    return edges.round(6).tolist(), right.tolist(), wrong.tolist()


def reliability(score: Float[np.ndarray, "samples"], correct: Bool[np.ndarray, "samples"], bins: int = 10) -> tuple[list[Bin], float]:
    """Equally wide bins of the score clipped to [0, 1], and the expected calibration error: the mean gap, weighted by samples.

    Takes scored and verified samples only; the error is NaN without any. Source: Guo et al. (arXiv 1706.04599), equation 3.
    """
    clipped = score.clip(0, 1)
    bin_of = np.minimum((clipped * bins).astype(int), bins - 1)
    found = []
    for number, (low, high) in enumerate(pairwise(np.linspace(0, 1, bins + 1).tolist())):
        inside = bin_of == number
        count = int(inside.sum())
        mean, share = (float(clipped[inside].mean()), float(correct[inside].mean())) if count else (math.nan, math.nan)
        found.append(Bin(low, high, count, mean, share))
    gaps = math.fsum(abs(each.score - each.correct) * each.count for each in found if each.count)
    return found, gaps / len(score) if len(score) else math.nan


def off_by(scores: Scores) -> Float[np.ndarray, "samples"]:
    """How far the score, clipped to [0, 1], is from the verdict (1 correct, 0 wrong); NaN without a score or a verdict."""
    return np.where(scores.usable, np.abs(scores.score.clip(0, 1) - scores.correct), math.nan)


def choose_samples(scores: Scores, limit: int = 150) -> Int[np.ndarray, "chosen"]:
    """Rows to show, the most confident mistakes first, then those without a score in their own order.

    When there are more than `limit`: a third are the wrong ones scored furthest off, a third the right ones scored furthest off, up to
    a tenth have no score or no verdict, and what is left is spread evenly over the rest by score.
    """
    gap = off_by(scores)
    raw_gap = np.abs(scores.score - scores.correct)  # among scores beyond 0 and 1, which clipping makes equal
    ranked = np.lexsort((np.arange(len(gap)), -np.nan_to_num(raw_gap), -np.nan_to_num(gap, nan=-1.0)))
    usable = scores.usable[ranked]
    scored, unscored = ranked[usable], np.sort(ranked[~usable])
    if len(ranked) > limit:
        worst_wrong = scored[~scores.correct[scored]][: limit // 3]
        worst_right = scored[scores.correct[scored]][: limit // 3]
        unscored = _spread(unscored, limit // 10 if len(scored) else limit)
        mistakes = set(worst_wrong.tolist()) | set(worst_right.tolist())
        rest = np.array([row for row in scored[np.argsort(scores.score[scored], kind="stable")].tolist() if row not in mistakes], int)
        chosen = mistakes | set(_spread(rest, limit - len(mistakes) - len(unscored)).tolist())
        scored = np.array([row for row in scored.tolist() if row in chosen], int)
    return np.concatenate([scored, unscored]).astype(int)


def _spread(rows: Int[np.ndarray, "rows"], count: int) -> Int[np.ndarray, "chosen"]:
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _point_label(report: Report, runs: list[Run]) -> str:
    first = runs[0]
    if first.sweep is None:
        return first.name if len(runs) == 1 else f"{first.name} and {len(runs) - 1} more seed{'s' * (len(runs) > 2)}"
    names = short_names(report.sweeps[first.sweep].keys)
    label = ", ".join(f"{names.get(key, key)} {value_text(value)}" for key, value in first.point.items()) or report.sweeps[first.sweep].name
    return label if len(report.sweeps) == 1 else f"{report.sweeps[first.sweep].name}: {label}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
