"""What the page's HTML shows, as plain values for the template: tiles on top, the table of runs, surfaces.

In: a comparison and its figures. Out: dataclasses of texts and numbers; `page.html.j2` makes HTML of them.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dashboards.report.figures import (
    Cell,
    Ranking,
    SeedGroup,
    axis_values,
    cell,
    differing_settings,
    is_continuous,
    objective_text,
    point_text,
    short_names,
    surface_axes,
    value_text,
)
from dashboards.report.load import Comparison, Run, Sweep
from dashboards.report.payload import figure_of, shortened, surface_figures
from orchestrator.measures import TIME_CHARTS, Place, shown_in
from orchestrator.terminal import clock

CELL_WIDTH = 62
"""Least width of a surface's cell, in pixels."""

CARD_WIDTH = 340
"""Least width of a surface, in pixels."""

MAX_SETTING = 80
"""Characters of a setting in the table."""


@dataclass(frozen=True)
class Tile:
    """A value on top of the page."""

    name: str
    value: str
    detail: str = ""
    wide: bool = False
    run: Run | None = None
    """Its status is shown in place of a value."""


@dataclass(frozen=True)
class Column:
    """A column of the table; a click on its name sorts."""

    name: str
    explanation: str = ""
    is_number: bool = False


@dataclass(frozen=True)
class SettingCell:
    """A setting in the table; `text` is None where the run's settings are not known."""

    text: str | None
    number: float | None
    """The value to sort by, where it is a number."""


@dataclass(frozen=True)
class RunRow:
    """A run in the table."""

    run: Run
    group: int
    is_best: bool
    """It belongs to the best point."""
    is_first: bool
    """It is the best single run."""
    settings: list[SettingCell]
    figures: list[float | None]


@dataclass(frozen=True)
class RunTable:
    """The table of runs."""

    columns: list[Column]
    rows: list[RunRow]
    sets: list[str]
    """Held-out sets of the runs; with more than one, the set is a column."""


@dataclass(frozen=True)
class HeatCell:
    """A cell of a surface with its place between the surface's lowest and highest mean."""

    value: Cell
    share: float
    is_highest: bool


@dataclass(frozen=True)
class HeatMap:
    """A figure over one or two searched keys; without a second key there is one row, whose label is None."""

    row_name: str | None
    column_name: str
    columns: list[str]
    rows: list[tuple[str | None, list[HeatCell]]]


@dataclass(frozen=True)
class SurfaceCard:
    """One figure over the searched keys; `heat_map` is None where `report.js` draws a plot of points."""

    figure: str
    title: str
    caption: str
    heat_map: HeatMap | None


@dataclass(frozen=True)
class Surface:
    """The figures of one sweep over its searched keys."""

    sweep: int
    axes: list[str]
    averaged: list[str]
    """Searched keys that are no axis."""
    is_continuous: bool
    has_deviation: bool
    """Several trials fall in one cell."""
    least_width: int
    cards: list[SurfaceCard]


def subjects(comparison: Comparison) -> list[str]:
    """What the page is about, in words."""
    alone = sum(run.sweep is None for run in comparison.runs)
    sweeps = [
        f"sweep over {', '.join(short_names(sweep.keys).values()) or 'seeds'}" for sweep in comparison.sweeps
    ]
    return sweeps + ([f"{alone} run{'s' * (alone > 1)}"] if alone else [])


def names_of(comparison: Comparison) -> list[str]:
    """The names of sweeps, and of runs that are no trials."""
    return [sweep.name for sweep in comparison.sweeps] + [
        run.name for run in comparison.runs if run.sweep is None
    ]


def headline(comparison: Comparison, groups: list[SeedGroup], found: Ranking) -> list[Tile]:
    """The tiles on top of the page: of the one sweep, of the one run, or of the best of several runs."""
    runs, sweeps = comparison.runs, comparison.sweeps
    alone = any(run.sweep is None for run in runs)
    counts = []
    if len(runs) > 1:
        states = Counter(run.status for run in runs).most_common()
        text = ", ".join(f"{count} {state}" for state, count in states)
        detail = f"{text}; {len(groups)} point{'s' * (len(groups) > 1)} of settings"
        counts = [Tile("Trials" if sweeps and not alone else "Runs", str(len(runs)), detail)]
    if len(sweeps) == 1 and not alone:
        return _sweep_tiles(comparison, sweeps[0]) + counts
    if len(runs) == 1:
        return counts + _run_tiles(runs[0])
    if found.best and found.first is not None:
        objective = f"{found.values[found.first]:.3f}"
        counts.append(Tile("Best run", runs[found.first].name, wide=True))
        counts.append(Tile("Its objective", objective, objective_text(found.metric)))
    return counts


def _sweep_tiles(comparison: Comparison, sweep: Sweep) -> list[Tile]:
    tiles = []
    best, work = sweep.best, sweep.work
    if best:
        seeds = f"mean of {best.seeds} seeds" if best.seeds > 1 else "one seed"
        point = point_text(best.point, sweep.keys) or best.trial
        tiles.append(Tile("Best point", point, f"{seeds}; best trial {best.trial}", wide=True))
        tiles.append(Tile("Its objective", f"{best.objective:.3f}", objective_text(sweep.metric)))
        members = [run for run in comparison.runs if run.point == best.point]
        accuracy, f1 = (cell(members, figure_of(name)).mean for name in ("accuracy", "self_verification_f1"))
        if not math.isnan(accuracy):
            tiles.append(
                Tile("Its accuracy", f"{accuracy:.3f}", "no F1" if math.isnan(f1) else f"F1 {f1:.3f}")
            )
    else:
        tiles.append(Tile("Best point", "none yet", "no trial has an objective so far", wide=True))
    if {"steps_trained", "steps_independent", "share"} <= work.keys():
        amount = f"{work['steps_trained']:.0f} of {work['steps_independent']:.0f} steps ({work['share']:.3g})"
        tiles.append(Tile("Work done", amount, "compared with training each trial alone"))
    if sweep.seconds is not None:
        tiles.append(Tile("Duration", clock(sweep.seconds)))
    return tiles


def _run_tiles(run: Run) -> list[Tile]:
    tiles = [Tile("Status", "", f"{steps_text(run)} steps", run=run)]
    if not run.evaluation:
        return [*tiles, Tile("Evaluation", "none", "no held-out set, or not evaluated yet")]
    shown = [measure for measure in shown_in(Place.REPORT_TILES) if measure.key in run.evaluation]
    return tiles + [Tile(each.heading, _change(run, each.key), "base → trained") for each in shown]


def _change(run: Run, name: str) -> str:
    """A figure of the base model and of the newest evaluation; the latter alone where there is no other."""
    before, after = run.base.get(name), run.evaluation[name]
    return f"{after:.3f}" if before is None or run.base == run.evaluation else f"{before:.3f} → {after:.3f}"


def steps_text(run: Run) -> str:
    """The run's steps, as `50 of 100` where its last step is known."""
    return f"{run.step} of {run.steps}" if run.steps else str(run.step)


def run_table(comparison: Comparison, groups: list[SeedGroup], found: Ranking) -> RunTable:
    """The runs with the settings that differ and the figures of their newest evaluations."""
    runs, keys = comparison.runs, differing_settings(comparison)
    figures = [
        measure
        for measure in shown_in(Place.REPORT_TABLE)
        if any(measure.key in run.evaluation for run in runs)
    ]
    sets = sorted({run.set_name for run in runs if run.set_name})
    names = short_names(keys)
    columns = [
        Column("run" if any(run.sweep is None for run in runs) else "trial"),
        *(Column(names[key], key) for key in keys),
        Column("status"),
        Column("steps", "Trained steps", is_number=True),
        *([Column("evaluated on")] if len(sets) > 1 else []),
        *(Column(measure.label, measure.about, is_number=True) for measure in figures),
        *([Column("objective", found.metric, is_number=True)] if found.values else []),
    ]
    group_of = {id(run): number for number, group in enumerate(groups) for run in group.runs}
    rows = [
        RunRow(
            run=run,
            group=group_of[id(run)],
            is_best=number in found.best,
            is_first=bool(found.best) and number == found.first,
            settings=[_setting(run, key) for key in keys],
            figures=[run.evaluation.get(measure.key) for measure in figures]
            + ([found.values.get(number)] if found.values else []),
        )
        for number, run in enumerate(runs)
    ]
    return RunTable(columns, rows, sets)


def _setting(run: Run, key: str) -> SettingCell:
    if key not in run.settings:
        return SettingCell(None, None)
    value = run.settings[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return SettingCell(shortened(value_text(value), MAX_SETTING), value if is_number else None)


def surfaces(comparison: Comparison) -> list[Surface]:
    """The figures of each sweep over its searched keys; none for a sweep over seeds alone."""
    found = []
    for number, sweep in enumerate(comparison.sweeps):
        trials = [run for run in comparison.runs if run.sweep == number]
        if surface_axes(sweep.keys) and trials:
            found.append(_surface(number, sweep, trials))
    return found


def _surface(number: int, sweep: Sweep, trials: list[Run]) -> Surface:
    points = [run.point for run in trials]
    axes, names = surface_axes(sweep.keys), short_names(sweep.keys)
    continuous = is_continuous(points, axes)
    averaged = [names[key] for key in sweep.keys if key not in axes]
    seeds = max(Counter(json.dumps(point, sort_keys=True) for point in points).values())
    least = CELL_WIDTH * (len(axis_values(points, axes[-1])) + 1) + 30
    return Surface(
        sweep=number,
        axes=[names[key] for key in axes],
        averaged=averaged,
        is_continuous=continuous,
        has_deviation=seeds > 1 or bool(averaged),
        least_width=CARD_WIDTH if continuous else max(CARD_WIDTH, least),
        cards=[
            SurfaceCard(key, title, text, None if continuous else _heat_map(trials, axes, names, value))
            for key, title, text, value in surface_figures(sweep)
        ],
    )


def _heat_map(
    trials: list[Run], axes: list[str], names: dict[str, str], value: Callable[[Run], float | None]
) -> HeatMap:
    row_key, column_key = (axes[0], axes[1]) if len(axes) > 1 else (None, axes[0])
    points = [run.point for run in trials]
    rows = axis_values(points, row_key) if row_key else [None]
    columns = axis_values(points, column_key)

    def at(row: Any, column: Any) -> Cell:
        members = [run for run in trials if run.point.get(column_key) == column]
        return cell([run for run in members if row_key is None or run.point.get(row_key) == row], value)

    cells = [[at(row, column) for column in columns] for row in rows]
    means = [each.mean for line in cells for each in line if each.count]
    low, high = (min(means), max(means)) if means else (0.0, 0.0)
    return HeatMap(
        row_name=names[row_key] if row_key else None,
        column_name=names[column_key],
        columns=[value_text(column) for column in columns],
        rows=[
            (value_text(row) if row_key else None, [_heat_cell(each, low, high) for each in line])
            for row, line in zip(rows, cells, strict=True)
        ],
    )


def _heat_cell(value: Cell, low: float, high: float) -> HeatCell:
    share = (value.mean - low) / (high - low) if high > low else 0.5
    return HeatCell(value, share, value.mean == high > low)


def chart_groups(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """A payload's charts by group, in order; the group of times may have parts of a step and no chart."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for chart in data["charts"]:
        groups.setdefault(chart["group"], []).append(chart)
    if data["parts"]:
        groups.setdefault(TIME_CHARTS, [])
    return groups
