"""What `report.js` draws: the numbers of the plots and a choice of sample solutions, as one tree for JSON.

In: a comparison and its scores. Out: plain dictionaries and lists, where NaN stands for what is undefined.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Int

from dashboards.report.figures import (
    RELIABILITY_BINS,
    Ranking,
    SeedGroup,
    axis_values,
    band,
    cell,
    choose_samples,
    histograms,
    is_continuous,
    objective_text,
    off_by,
    reliability,
    short_names,
    surface_axes,
    thinned,
    value_text,
)
from dashboards.report.load import Comparison, Curve, Run, Sweep
from dashboards.report.samples import Scores
from orchestrator.algorithm.metrics import expected_calibration_error
from orchestrator.measures import CHART_GROUPS, EVALUATION_CHARTS, Place, charted_in, shown_in

MAX_SAMPLES = 150
MAX_SAMPLED_RUNS = 12
TEXT_BUDGET = 4_000_000
"""Characters of sample solutions in a page. Long ones are shortened in the middle to keep within it."""


def payload(
    comparison: Comparison, groups: list[SeedGroup], found: Ranking, scores: dict[int, Scores]
) -> tuple[dict[str, Any], list[str]]:
    """The tree that `report.js` draws, and notes for the reader. `scores` are by index of the run."""
    runs = comparison.runs
    trunks, trunk_of = _trunks(groups)
    best = {id(runs[number]) for number in found.best}
    after = [members[0].branch if members else -1 for members in map(_shared_trunk, groups)]
    drawn_after = list(zip(groups, after, strict=True))
    charts, zero = _drawn_charts(runs)
    samples, notes = _samples(found, scores)
    entries = [
        {"name": runs[number].name, "run": number, **_score_figures(each)} for number, each in scores.items()
    ]
    data = {
        "points": [
            {
                "label": group.label,
                "best": any(id(run) in best for run in group.runs),
                "runs": len(group.runs),
                "branches": sorted({run.branch for run in group.runs if run.trunk}),
                "trunk": trunk,
            }
            for group, trunk in zip(groups, trunk_of, strict=True)
        ],
        "charts": charts,
        "zero": zero,
        "training": [_curves([run.training for run in group.runs], step) for group, step in drawn_after],
        "evaluation": [_curves([run.evaluations for run in group.runs], step) for group, step in drawn_after],
        "trunks": [_trunk_curves(members, trunks) for members in trunks],
        "parts": _time_parts(groups),
        "sweeps": [_sweep_points(comparison, number) for number in range(len(comparison.sweeps))],
        "scores": entries,
        "selected": _selected(found, scores),
        "samples": samples,
    }
    return data, notes


def _trunks(groups: list[SeedGroup]) -> tuple[list[list[Run]], list[int | None]]:
    """The groups' trunks, each as the runs that branched from it, and the index of each group's trunk."""
    trunks: list[list[Run]] = []
    folders: list[set[Any]] = []
    trunk_of: list[int | None] = []
    for group in groups:
        members = _shared_trunk(group)
        key = {run.trunk for run in members}
        if members and key not in folders:
            trunks.append(members)
            folders.append(key)
        trunk_of.append(folders.index(key) if members else None)
    return trunks, trunk_of


def _shared_trunk(group: SeedGroup) -> list[Run]:
    """The runs of a group that have curves, if all branched at one step: the trunk is drawn once, in grey."""
    started = [run for run in group.runs if run.training or run.evaluations]
    shared = all(run.trunk for run in started) and len({run.branch for run in started}) == 1
    return started if shared else []


def _trunk_curves(members: list[Run], trunks: list[list[Run]]) -> dict[str, Any]:
    folders = {run.trunk for run in members}
    return {
        "name": ", ".join(dict.fromkeys(run.trunk.name for run in members if run.trunk)),
        # It lies within the band of another trunk, and that one is drawn.
        "part": any(folders < {run.trunk for run in other} for other in trunks),
        "training": _curves([_until(run.training, run.branch) for run in members], -1),
        "evaluation": _curves([_until(run.evaluations, run.branch) for run in members], -1),
    }


def _until(curves: dict[str, Curve], step: int) -> dict[str, Curve]:
    return {name: {at: value for at, value in curve.items() if at <= step} for name, curve in curves.items()}


def _curves(runs: list[dict[str, Curve]], after: int) -> dict[str, Any]:
    """Bands of all drawn metrics after step `after`; without `low` and `high` where they are the mean."""
    curves = {}
    for metric in [measure.key for group in CHART_GROUPS for measure in charted_in(group)]:
        own = [{step: value for step, value in run.get(metric, {}).items() if step > after} for run in runs]
        found = band(thinned(own, largest=metric.endswith("_max")))
        if not found.steps:
            continue
        curves[metric] = {"steps": found.steps, "mean": found.mean}
        if found.low != found.high:
            curves[metric] |= {"low": found.low, "high": found.high}
    return curves


def _drawn_charts(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """Charts that have values, and the titles of those that are 0 throughout."""
    charts, zero = [], []
    for group in CHART_GROUPS:
        source = "evaluation" if group == EVALUATION_CHARTS else "training"
        for measure in charted_in(group):
            curves = [run.evaluations if source == "evaluation" else run.training for run in runs]
            values = [value for curve in curves for value in curve.get(measure.key, {}).values()]
            if values and not any(values) and source == "training":
                zero.append(measure.heading)
            elif values:
                described = {"title": measure.heading, "caption": measure.caption}
                place = {"id": f"{source}:{measure.key}", "group": group, "source": source}
                charts.append({**place, "metric": measure.key, **described})
    return charts, zero


def _time_parts(groups: list[SeedGroup]) -> list[dict[str, Any]]:
    """Mean seconds of each part of a step by group, over its own steps; for a single group its curves too."""
    found = []
    for group in groups:
        values = {part.title: _own_values(group, part.key) for part in shown_in(Place.STEP_PARTS)}
        if any(values.values()):
            means = {name: float(np.mean(each)) if each else 0.0 for name, each in values.items()}
            found.append({"label": group.label, "mean": means})
    if len(groups) == 1 and found:
        curves = {
            part.title: band(
                thinned([run.training.get(part.key, {}) for run in groups[0].runs], largest=False)
            )
            for part in shown_in(Place.STEP_PARTS)
        }
        found[0]["curves"] = {
            name: {"steps": curve.steps, "mean": curve.mean} for name, curve in curves.items()
        }
    return found


def _own_values(group: SeedGroup, metric: str) -> list[float]:
    """A metric's values at the steps that the group's runs trained themselves, after their trunk."""
    curves = [(run.branch, run.training.get(metric, {})) for run in group.runs]
    return [value for branch, curve in curves for step, value in curve.items() if step > branch]


def _sweep_points(comparison: Comparison, number: int) -> dict[str, Any]:
    """A sweep's points with their figures, for the plots over ranges of values or over more than two keys."""
    sweep, trials = comparison.sweeps[number], [run for run in comparison.runs if run.sweep == number]
    axes, names = surface_axes(sweep.keys), short_names(sweep.keys)
    if not axes or not (len(sweep.keys) > 2 or is_continuous([run.point for run in trials], axes)):
        return {}
    by_point: dict[str, list[Run]] = {}
    for run in trials:
        by_point.setdefault(json.dumps(run.point, sort_keys=True), []).append(run)
    figures = {name: value for name, _, _, value in surface_figures(sweep)} | {"objective": objective_of}
    ranges = {key: axis_values([run.point for run in trials], key) for key in sweep.keys}
    return {
        "axes": [sweep.keys.index(key) for key in axes],
        "keys": [
            {"name": names[key], "values": values, "texts": [value_text(value) for value in values]}
            for key, values in ranges.items()
        ],
        "points": [
            {
                "values": [members[0].point.get(key) for key in sweep.keys],
                "texts": [value_text(members[0].point.get(key)) for key in sweep.keys],
                "figures": {name: cell(members, value).mean for name, value in figures.items()},
            }
            for members in by_point.values()
        ],
    }


def surface_figures(sweep: Sweep) -> list[tuple[str, str, str, Callable[[Run], float | None]]]:
    """Name, title, caption and value of the figures that are drawn over the searched keys."""
    drawn = list(shown_in(Place.REPORT_SURFACES))
    figures = [(each.key, each.heading, each.caption, figure_of(each.key)) for each in drawn]
    if sweep.metric in [each.key for each in drawn]:
        return figures
    words = f"{objective_text(sweep.metric)}: the objective of the sweep."
    return [*figures, ("objective", "Objective", words[0].upper() + words[1:], objective_of)]


def figure_of(name: str) -> Callable[[Run], float | None]:
    """Reads one figure of a run's newest evaluation."""
    return lambda run: run.evaluation.get(name)


def objective_of(run: Run) -> float | None:
    """The figure that a sweep compares its trials by; None for other runs."""
    return run.objective


def _score_figures(scores: Scores) -> dict[str, Any]:
    usable, correct = scores.usable, scores.correct
    score = scores.score[usable]
    edges, right, wrong = histograms(scores)
    bins = reliability(score, correct[usable])
    return {
        "set": scores.set_name,
        "step": scores.step,
        "samples": len(scores.status),
        "right": int((usable & correct).sum()),
        "wrong": int((usable & ~correct).sum()),
        "unfinished": int((~scores.finished).sum()),
        "unverified": int((~scores.verified).sum()),
        "outside": int(((score < edges[0]) | (score > edges[-1])).sum()),
        "edges": edges,
        "histogram": {"right": right, "wrong": wrong},
        "bins": [asdict(each) for each in bins],
        "ece": expected_calibration_error(score, correct[usable], RELIABILITY_BINS),
    }


def _selected(found: Ranking, scores: dict[int, Scores]) -> int:
    """Which entry of `scores` the page opens with: the best run's, else the first one with scored samples."""
    numbers = list(scores)
    if found.first in scores:
        return numbers.index(found.first)
    return next((at for at, number in enumerate(numbers) if scores[number].usable.any()), 0)


def _samples(found: Ranking, scores: dict[int, Scores]) -> tuple[dict[int, list[dict[str, Any]]], list[str]]:
    """By run, its chosen samples as rows; only of the best runs when there are many."""
    by_rank = sorted(
        scores, key=lambda number: (number != found.first, -found.values.get(number, -math.inf), number)
    )
    shown, notes = by_rank[:MAX_SAMPLED_RUNS], []
    if len(by_rank) > len(shown):
        notes.append(
            f"This page holds sample solutions of the {len(shown)} best of {len(by_rank)} runs, "
            "to stay small."
        )
    chosen = {number: choose_samples(scores[number], MAX_SAMPLES) for number in shown}
    limit = min(max(TEXT_BUDGET // max(sum(map(len, chosen.values())), 1), 600), 8000)
    return {number: _sample_rows(scores[number], rows, limit) for number, rows in chosen.items()}, notes


def _sample_rows(scores: Scores, rows: Int[np.ndarray, "chosen"], limit: int) -> list[dict[str, Any]]:
    """Samples as rows of the page's table; problems and solutions have at most `limit` characters."""
    gap = off_by(scores)
    return [
        {
            "problem": shortened(text["problem"], limit),
            "solution": shortened(text["response"], limit),
            "reference": shortened(text["reference"], 300),
            "answer": None if text["answer"] is None else shortened(text["answer"], 300),
            "tokens": text["tokens"],
            "status": scores.status[row],
            "detail": shortened(text["detail"] or "", 500),
            "finished": bool(scores.finished[row]),
            "score": float(scores.score[row]),
            "off": float(gap[row]),
        }
        for row, text in zip(rows.tolist(), scores.solutions(rows), strict=True)
    ]


def shortened(text: str, limit: int) -> str:
    """A long text without its middle: the beginning and the end of a solution tell most."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n[… {len(text) - limit:,} characters left out …]\n{text[-(limit // 2) :]}"
