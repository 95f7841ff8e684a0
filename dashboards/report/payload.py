"""What `report.js` draws: the numbers of the page's plots and a choice of sample solutions, as one tree for JSON.

In: a loaded report. Out: plain dictionaries and lists, where NaN stands for what is undefined.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dashboards.report.figures import (
    Objective,
    Point,
    axis_values,
    band,
    cell,
    choose_samples,
    histograms,
    is_continuous,
    off_by,
    reliability,
    short_names,
    surface_axes,
    thinned,
    value_text,
)
from dashboards.report.load import Curve, Report, Run, Scores, Sweep

MAX_SAMPLES = 150
MAX_SAMPLED_RUNS = 12
TEXT_BUDGET = 4_000_000
"""Characters of sample solutions in a page; long ones are shortened in the middle to keep within it."""


@dataclass(frozen=True)
class Chart:
    metric: str
    title: str
    caption: str


CURVES: dict[str, list[Chart]] = {
    "On held-out problems": [
        Chart("accuracy", "Accuracy", "Share of sampled solutions that are right. Higher is better."),
        Chart(
            "self_verification_f1",
            "Self-verification F1",
            "How well score > 0.5 tells right from wrong, both counting alike. Higher is better.",
        ),
        Chart("auroc", "AUROC", "Chance that a right solution scores above a wrong one; 0.5 is guessing. Higher is better."),
        Chart(
            "auroc_within_problem",
            "AUROC within a problem",
            "The same among solutions of one problem, all equally hard. Higher is better.",
        ),
    ],
    "On training batches": [
        Chart("train/accuracy", "Accuracy", "Share of a step's solutions that are right. Should rise."),
        Chart("self_reward/f1", "Self-verification F1", "The score's agreement with the verifier on a step's solutions. Should rise."),
        Chart("train/response_tokens", "Response tokens", "Mean length of a solution. A slow drift is fine; a jump or collapse is not."),
        Chart("train/finished_share", "Finished", "Share of solutions that ended by themselves. Should be near 1."),
    ],
    "Losses": [
        Chart("loss/policy", "Policy loss", "The clipped policy-gradient term. Stays near 0; its size says little."),
        Chart("loss/self_reward", "Self-reward loss", "Weighted squared gap between score and verdict. Should fall."),
        Chart("loss/total", "Total loss", "What is minimised: policy loss + alpha × self-reward loss + KL. No spikes is good."),
        Chart("policy/grad_norm", "Gradient norm", "Before clipping. Steady is good; growth by orders of magnitude is not."),
    ],
    "Stability": [
        Chart("policy/kl", "KL to the reference", "How far the policy has moved from the initial model. Should grow slowly."),
        Chart("policy/mismatch_kl", "Engine–learner KL", "Generating engine against learner on the same tokens. Should stay near 0."),
        Chart("policy/mismatch_mean", "Engine–learner gap, mean", "Mean |difference of log-probability| over tokens. Should stay small."),
        Chart(
            "policy/mismatch_max", "Engine–learner gap, largest", "The worst token of a step. Single spikes are harmless; a trend is not."
        ),
        Chart("policy/entropy", "Entropy", "How undecided the policy is about the next token. A fall to 0 ends exploration."),
        Chart("policy/clip_share", "Clipped tokens", "Share of tokens whose update was clipped. A few percent or less is good."),
    ],
    "Time": [
        Chart("time/step", "Seconds a step", "Wall-clock time of a whole step. Lower is better."),
        Chart("throughput/samples_per_s", "Solutions a second", "Generated, checked and learned from. Higher is better."),
        Chart("throughput/tokens_per_s", "Tokens a second", "Response tokens, over the same time. Higher is better."),
    ],
}
EVALUATION_GROUP = "On held-out problems"
TIME_PARTS = {"time/rollout": "generating", "time/verify": "checking", "time/learn": "learning", "time/sync": "sending weights"}


def payload(report: Report, groups: list[Point], found: Objective, scores: dict[int, Scores]) -> tuple[dict[str, Any], list[str]]:
    """What `report.js` draws, and what is to be said about it."""
    runs = report.runs
    best_runs = {id(runs[number]) for number in found.best}
    trunks: list[list[Run]] = []
    described, training, evaluation = [], [], []
    for point in groups:
        trunk = _shared_trunk(point)
        if trunk:
            key = {run.trunk for run in trunk}
            number = next((n for n, other in enumerate(trunks) if {run.trunk for run in other} == key), len(trunks))
            if number == len(trunks):
                trunks.append(trunk)
        after = trunk[0].branch if trunk else -1
        branches = sorted({run.branch for run in point.runs if run.trunk})
        described.append(
            {
                "label": point.label,
                "best": any(id(run) in best_runs for run in point.runs),
                "runs": len(point.runs),
                "branches": branches,
                "trunk": number if trunk else None,
            }
        )
        training.append(_curves([run.training for run in point.runs], after))
        evaluation.append(_curves([run.evaluations for run in point.runs], after))
    charts, zero = _drawn_charts(runs)
    samples, notes = _samples(report, found, scores)
    entries = [{"name": runs[number].name, "run": number, **_score_figures(runs[number], found)} for number, found in scores.items()]
    chosen = (
        found.first if found.first in scores else next((n for n, each in scores.items() if each.usable.any()), next(iter(scores), None))
    )
    data = {
        "points": described,
        "charts": charts,
        "zero": zero,
        "training": training,
        "evaluation": evaluation,
        "trunks": [
            {
                "name": ", ".join(dict.fromkeys(run.trunk.name for run in members if run.trunk)),
                # Lies within the band of another, with which it is drawn.
                "part": any({run.trunk for run in members} < {run.trunk for run in other} for other in trunks),
                "training": _curves([_until(run.training, run.branch) for run in members], -1),
                "evaluation": _curves([_until(run.evaluations, run.branch) for run in members], -1),
            }
            for members in trunks
        ],
        "parts": _time_parts(groups),
        "sweeps": [_sweep_points(report, number) for number in range(len(report.sweeps))],
        "scores": entries,
        "selected": next((n for n, entry in enumerate(entries) if entry["run"] == chosen), 0),
        "samples": samples,
    }
    return data, notes


def _shared_trunk(point: Point) -> list[Run]:
    """The point's runs that have curves, if all branched at one step: what came before is then drawn once for all points, in grey."""
    begun = [run for run in point.runs if run.training or run.evaluations]
    return begun if begun and all(run.trunk for run in begun) and len({run.branch for run in begun}) == 1 else []


def _until(curves: dict[str, Curve], step: int) -> dict[str, Curve]:
    return {name: {at: value for at, value in curve.items() if at <= step} for name, curve in curves.items()}


def _curves(runs: list[dict[str, Curve]], after: int) -> dict[str, Any]:
    """Bands of all drawn metrics after step `after`; `low` and `high` are left out where they are the mean."""
    curves = {}
    for metric in [chart.metric for group in CURVES.values() for chart in group]:
        own = [{step: value for step, value in run.get(metric, {}).items() if step > after} for run in runs]
        found = band(thinned(own, largest=metric.endswith("_max")))
        if not found.steps:
            continue
        curves[metric] = {"steps": found.steps, "mean": found.mean}
        if found.low != found.high:
            curves[metric] |= {"low": found.low, "high": found.high}
    return curves


def _drawn_charts(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """Charts with something to show, and the titles of those that are 0 throughout."""
    charts, zero = [], []
    for group, members in CURVES.items():
        source = "evaluation" if group == EVALUATION_GROUP else "training"
        for chart in members:
            values = [
                value
                for run in runs
                for value in (run.evaluations if source == "evaluation" else run.training).get(chart.metric, {}).values()
            ]
            if values and not any(values) and source == "training":
                zero.append(chart.title)
            elif values:
                name = f"{source}:{chart.metric}"
                described = {"title": chart.title, "caption": chart.caption}
                charts.append({"id": name, "group": group, "source": source, "metric": chart.metric, **described})
    return charts, zero


def _time_parts(groups: list[Point]) -> list[dict[str, Any]]:
    """Of each point the mean seconds of a step's parts over its own steps; of a single one the curves of the parts too."""
    found = []
    for point in groups:
        means = {
            name: [value for run in point.runs for step, value in run.training.get(metric, {}).items() if step > run.branch]
            for metric, name in TIME_PARTS.items()
        }
        if any(means.values()):
            found.append(
                {"label": point.label, "mean": {name: float(np.mean(values)) if values else 0.0 for name, values in means.items()}}
            )
    if len(groups) == 1 and found:
        curves = {
            name: band(thinned([run.training.get(metric, {}) for run in groups[0].runs], False)) for metric, name in TIME_PARTS.items()
        }
        found[0]["curves"] = {name: {"steps": curve.steps, "mean": curve.mean} for name, curve in curves.items()}
    return found


def _sweep_points(report: Report, number: int) -> dict[str, Any]:
    """Searched values and figures of each point of a sweep, for the plots of values that are no lists and of more than two keys."""
    sweep, trials = report.sweeps[number], [run for run in report.runs if run.sweep == number]
    axes, names = surface_axes(sweep.keys), short_names(sweep.keys)
    if not axes or not (len(sweep.keys) > 2 or is_continuous([run.point for run in trials], axes)):
        return {}
    by_point: dict[str, list[Run]] = {}
    for run in trials:
        by_point.setdefault(json.dumps(run.point, sort_keys=True), []).append(run)
    figures = {name: value for name, _, _, value in surface_figures(sweep)} | {"objective": lambda run: run.objective}
    ranges = {key: axis_values([run.point for run in trials], key) for key in sweep.keys}
    return {
        "axes": [sweep.keys.index(key) for key in axes],
        "keys": [
            {"name": names[key], "values": values, "texts": [value_text(value) for value in values]} for key, values in ranges.items()
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
    figures: list[tuple[str, str, str, Callable[[Run], float | None]]] = [
        ("accuracy", "Accuracy", "Share of held-out solutions that are right. Higher is better.", figure("accuracy")),
        (
            "self_verification_f1",
            "Self-verification F1",
            "How well score > 0.5 tells right from wrong. Higher is better.",
            figure("self_verification_f1"),
        ),
    ]
    if sweep.metric in [name for name, *_ in figures]:
        return figures
    words = f"{metric_words(sweep.metric)}: what the sweep compares by."
    return [*figures, ("objective", "Objective", words[0].upper() + words[1:], lambda run: run.objective)]


def figure(name: str) -> Callable[[Run], float | None]:
    return lambda run: run.evaluation.get(name)


def _score_figures(run: Run, scores: Scores) -> dict[str, Any]:
    usable, correct = scores.usable, scores.correct
    edges, right, wrong = histograms(scores)
    bins, error = reliability(scores.score[usable], correct[usable])
    return {
        "set": scores.set_name,
        "step": scores.step,
        "samples": len(scores.status),
        "right": int((usable & correct).sum()),
        "wrong": int((usable & ~correct).sum()),
        "unfinished": int((~scores.finished).sum()),
        "unverified": int((~scores.verified).sum()),
        "outside": int(((scores.score[usable] < edges[0]) | (scores.score[usable] > edges[-1])).sum()),
        "edges": edges,
        "histogram": {"right": right, "wrong": wrong},
        "bins": [{"low": each.low, "high": each.high, "count": each.count, "score": each.score, "correct": each.correct} for each in bins],
        "ece": error,
    }


def _samples(report: Report, found: Objective, scores: dict[int, Scores]) -> tuple[dict[int, list[dict[str, Any]]], list[str]]:
    """By run, its chosen samples as rows; only of the best runs when there are many."""
    ranked = sorted(scores, key=lambda number: (number != found.first, -found.values.get(number, -math.inf), number))
    shown, notes = ranked[:MAX_SAMPLED_RUNS], []
    if len(ranked) > len(shown):
        notes.append(f"Sample solutions are held for the {len(shown)} best of {len(ranked)} runs, to keep this page small.")
    chosen = {number: choose_samples(scores[number], MAX_SAMPLES) for number in shown}
    limit = min(max(TEXT_BUDGET // max(sum(map(len, chosen.values())), 1), 600), 8000)
    rows = {}
    for number, indices in chosen.items():
        each = scores[number]
        gap = off_by(each)
        rows[number] = [
            {
                "problem": shortened(text["problem"], limit),
                "solution": shortened(text["response"], limit),
                "reference": shortened(text["reference"], 300),
                "answer": None if text["answer"] is None else shortened(text["answer"], 300),
                "tokens": text["tokens"],
                "status": each.status[index],
                "finished": bool(each.finished[index]),
                "score": float(each.score[index]),
                "off": float(gap[index]),
            }
            for index, text in zip(indices.tolist(), each.solutions(indices), strict=True)
        ]
    return rows, notes


def shortened(text: str, limit: int) -> str:
    """Long texts lose their middle: how a solution begins and what it ends with tell most."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n[… {len(text) - limit:,} characters left out …]\n{text[-(limit // 2) :]}"


def metric_words(metric: str) -> str:
    return metric.replace("self_verification_f1", "F1").replace("_", " ")
