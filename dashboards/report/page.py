"""`laser report`: runs, or a sweep, as one HTML page that needs no network.

In: folders of runs and sweeps. Out: a file that holds plotly.js, the figures' numbers and a choice of sample solutions. Tables are HTML
made here; curves, scores and samples are drawn by `report.js` from the numbers.
"""

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from dashboards.report.figures import (
    Cell,
    Objective,
    Point,
    axis_values,
    cell,
    differing_settings,
    is_continuous,
    objective,
    points,
    short_names,
    surface_axes,
    value_text,
)
from dashboards.report.load import Report, Run, Sweep, load_runs, newest_scores
from dashboards.report.payload import figure, metric_words, payload, shortened, surface_figures
from orchestrator.files import write_atomically

CELL_WIDTH = 62
"""Least width of a surface's cell, in pixels."""

COLUMNS = {
    "accuracy": ("accuracy", "Share of sampled solutions that are right"),
    "self_verification_f1": ("F1", "Self-verification F1: how well score > 0.5 tells right from wrong"),
    "auroc": ("AUROC", "Chance that a right solution scores above a wrong one"),
    "auroc_within_problem": ("AUROC within", "The same among solutions of one problem"),
    "maj_at_k": ("Maj@k", "Accuracy of the majority vote over a problem's solutions"),
    "weighted_at_k": ("weighted", "Accuracy of the vote weighted by score"),
}


def write_report(runs: Sequence[Path | str], out: Path | str, title: str | None = None) -> None:
    """Write one page on runs and sweeps, given as folders or by their names in `runs/`.

    Raises:
        ConfigError: A folder holds neither a run nor a sweep, or something in it cannot be read.
        RunError: A line of a journal is no event.
    """
    report = load_runs([run_folder(run) for run in runs])
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page(report, title))


def run_folder(run: Path | str) -> Path:
    """The folder of a run or sweep: itself, or the one of that name in `runs/`."""
    named = Path("runs", run)
    return named if named.exists() and not Path(run).exists() else Path(run)


def page(report: Report, title: str | None = None) -> str:
    """The HTML of a report."""
    found = objective(report)
    groups = points(report)
    title = title or ", ".join(dict.fromkeys(_whole_names(report)))
    scores = {number: scores for number, run in enumerate(report.runs) if (scores := newest_scores(run)) is not None}
    data, notes = payload(report, groups, found, scores)
    here = Path(__file__).parent
    plotly, script = get_plotlyjs(), (here / "report.js").read_text()
    # Nothing but these two scripts may run, and nothing may be fetched, whatever a solution's text holds.
    policy = f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; style-src 'unsafe-inline'; img-src data: blob:"
    sections = [
        _header(report, groups, found, title),
        _table(report, groups, found),
        *(_surfaces(report, number, sweep) for number, sweep in enumerate(report.sweeps)),
        _curves_section(data),
        _scores_section(data),
        _samples_section(data),
        _notes(report.notes + notes),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)} · LaSeR</title>",
            f"<style>{(here / 'report.css').read_text()}</style></head><body>",
            *sections,
            # `<` must not be written in a script's text: a solution may hold `</script>`.
            '<script type="application/json" id="data">' + _json(data).replace("<", "\\u003c") + "</script>",
            f"<script>{plotly}</script>",
            f"<script>{script}</script>",
            "</body></html>",
        ]
    )


def _header(report: Report, groups: list[Point], found: Objective, title: str) -> str:
    now = datetime.now().astimezone()
    states = Counter(run.status for run in report.runs)
    parts = [f"sweep over {', '.join(short_names(sweep.keys).values()) or 'seeds'}" for sweep in report.sweeps]
    alone = sum(run.sweep is None for run in report.runs)
    if alone:
        parts.append(f"{alone} run{'s' * (alone > 1)}")
    sets = sorted({run.set_name for run in report.runs if run.set_name})
    about = f"LaSeR: {' and '.join(parts)} · evaluated on {', '.join(sets) or 'nothing yet'} · report of "
    stamp = f'<time datetime="{now.isoformat(timespec="minutes")}">{now:%Y-%m-%d %H:%M}</time>'
    figures = []
    if len(report.runs) > 1:
        text = ", ".join(f"{count} {state}" for state, count in states.most_common())
        count = f"{len(report.runs)}<small>{text}; {len(groups)} point{'s' * (len(groups) > 1)} of settings</small>"
        figures.append(("Trials" if report.sweeps and not alone else "Runs", count, False))
    if len(report.sweeps) == 1 and not alone:
        figures = [*_sweep_headline(report, report.sweeps[0]), *figures]
    elif len(report.runs) == 1:
        figures += _run_headline(report.runs[0])
    elif found.best and found.first is not None:
        value = f"{found.values[found.first]:.3f}<small>{escape(metric_words(found.metric))}</small>"
        figures += [("Best run", escape(report.runs[found.first].name), True), ("Its objective", value, False)]
    cards = "".join(f"<div{' class=wide' if wide else ''}><dt>{name}</dt><dd>{value}</dd></div>" for name, value, wide in figures)
    return f'<header><h1>{escape(title)}</h1><p class="about">{escape(about)}{stamp}</p><dl class="headline">{cards}</dl></header><main>'


def _sweep_headline(report: Report, sweep: Sweep) -> list[tuple[str, str, bool]]:
    figures = []
    if sweep.best:
        names = short_names(sweep.keys)
        point = ", ".join(f"{names.get(key, key)} {value_text(value)}" for key, value in sweep.best.point.items()) or sweep.best.trial
        seeds = f"mean of {sweep.best.seeds} seeds" if sweep.best.seeds > 1 else "one seed"
        figures.append(("Best point", f"{escape(point)}<small>{seeds}; best trial {escape(sweep.best.trial)}</small>", True))
        figures.append(("Its objective", f"{sweep.best.objective:.3f}<small>{escape(metric_words(sweep.metric))}</small>", False))
        accuracy, f1 = (
            cell([run for run in report.runs if run.point == sweep.best.point], figure(name)).mean
            for name in ("accuracy", "self_verification_f1")
        )
        if not math.isnan(accuracy):
            f1_text = "no F1" if math.isnan(f1) else f"F1 {f1:.3f}"
            figures.append(("Its accuracy", f"{accuracy:.3f}<small>{f1_text}</small>", False))
    else:
        figures.append(("Best point", "none yet<small>no trial has an objective so far</small>", True))
    work = sweep.work
    if {"steps_trained", "steps_independent", "share"} <= work.keys():
        amount = f"{work['steps_trained']:.0f} of {work['steps_independent']:.0f} steps ({work['share']:.3g})"
        figures.append(("Work done", f"{amount}<small>against training every trial by itself</small>", False))
    if sweep.seconds is not None:
        figures.append(("Time", _duration(sweep.seconds), False))
    return figures


def _run_headline(run: Run) -> list[tuple[str, str, bool]]:
    def change(name: str) -> str:
        before, after = run.base.get(name), run.evaluation.get(name)
        if after is None:
            return "none"
        return f"{after:.3f}" if before is None or run.base == run.evaluation else f"{before:.3f} → {after:.3f}"

    steps = f"{run.step} of {run.steps}" if run.steps else str(run.step)
    figures = [("Status", f"{_status(run)}<small>{steps} steps</small>", False)]
    if not run.evaluation:
        return [*figures, ("Evaluation", "none<small>no held-out set, or not evaluated yet</small>", False)]
    names = {"accuracy": "Accuracy", "self_verification_f1": "F1", "auroc_within_problem": "AUROC within a problem", "maj_at_k": "Maj@k"}
    shown = [(label, f"{change(name)}<small>base → trained</small>", False) for name, label in names.items() if name in run.evaluation]
    if "weighted_at_k" in run.evaluation:
        shown.append(("Maj@k weighted by score", f"{change('weighted_at_k')}<small>base → trained</small>", False))
    return figures + shown


def _table(report: Report, groups: list[Point], found: Objective) -> str:
    keys = differing_settings(report)
    names = short_names(keys)
    point_of = {id(run): number for number, point in enumerate(groups) for run in point.runs}
    figures = [name for name in COLUMNS if any(name in run.evaluation for run in report.runs)]
    sets = {run.set_name for run in report.runs if run.set_name}
    head = [_column("run" if any(run.sweep is None for run in report.runs) else "trial", "")]
    head += [_column(names[key], key) for key in keys]
    head += [_column("status", ""), _column("steps", "Trained steps", "number")]
    head += [_column("evaluated on", "")] if len(sets) > 1 else []
    head += [_column(COLUMNS[name][0], COLUMNS[name][1], "number") for name in figures]
    head += [_column("objective", found.metric, "number")] if found.values else []
    rows = []
    for number, run in enumerate(report.runs):
        mark = ' <span class="mark">★ best</span>' if number == found.first and found.best else ""
        name = escape(run.name)
        breakable = name.replace(",", ",<wbr>")
        cells = [f'<th scope="row" data-point="{point_of[id(run)]}" title="{name}"><span class="name">{breakable}</span>{mark}</th>']
        cells += [_setting(run.settings.get(key), key in run.settings) for key in keys]
        cells.append(f'<td data-value="{escape(run.status)}">{_status(run)}</td>')
        steps = f"{run.step}/{run.steps}" if run.steps else str(run.step)
        cells.append(f'<td class="number" data-value="{run.step}">{steps}</td>')
        cells += [f"<td>{escape(run.set_name or '–')}</td>"] if len(sets) > 1 else []
        cells += [_number_cell(run.evaluation.get(name)) for name in figures]
        cells += [_number_cell(found.values.get(number))] if found.values else []
        rows.append(f"<tr{' class=best' if number in found.best else ''}>{''.join(cells)}</tr>")
    caption = "Settings that differ, and the figures of each one's newest evaluation."
    if len(report.runs) == 1:
        caption = "The figures of the newest evaluation."
    if found.values and len(report.runs) > 1:
        caption += f" Objective: {escape(metric_words(found.metric))}."
    if found.best:
        caption += " Shaded: the best point." if len(found.best) > 1 else " Shaded: the best."
    if len(sets) > 1:
        caption += " The sets differ, so the figures do not compare."
    trunks = [
        f"{escape(trunk.name)} ({trunk.steps} steps, {escape(trunk.status)}{': ' + escape(trunk.error) if trunk.error else ''})"
        for sweep in report.sweeps
        for trunk in sweep.trunks
    ]
    shared = f'<p class="note">Trunks, the steps that trials share: {"; ".join(trunks)}.</p>' if trunks else ""
    return (
        f'<section><h2>{"Trials" if report.sweeps else "Runs" if len(report.runs) > 1 else "Result"}</h2><p class="caption">{caption} '
        f"{'A click on a heading sorts.' if len(report.runs) > 1 else ''}</p>"
        f'<div class="scroll{" tall" if len(rows) > 24 else ""}"><table class="runs sortable"><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f"{shared}</section>"
    )


def _surfaces(report: Report, number: int, sweep: Sweep) -> str:
    """A sweep's figures over its searched keys: tables of cells here; where values are no lists, plots that `report.js` fills."""
    trials = [run for run in report.runs if run.sweep == number]
    axes = surface_axes(sweep.keys)
    if not axes or not trials:
        return ""
    names = short_names(sweep.keys)
    heading = f"{' and '.join(names[key] for key in axes)}{f' of {sweep.name}' if len(report.sweeps) > 1 else ''}"
    others = [names[key] for key in sweep.keys if key not in axes]
    continuous = is_continuous([run.point for run in trials], axes)
    seeds = max(Counter(json.dumps(run.point, sort_keys=True) for run in trials).values())
    caption = "Each finished trial at its place, coloured by the figure." if continuous else "Mean over each place's finished trials"
    if not continuous:
        caption += ", ± their standard deviation" if seeds > 1 or others else ""
        caption += "; a stronger colour is higher, the highest is outlined."
    if others and not continuous:
        caption += f" Averaged over {', '.join(others)}."
    if continuous:
        blocks = [
            f'<div class="card"><h3>{title}</h3><p class="caption">{escape(text)}</p><div class="plot wide" data-scatter="{number}" '
            f'data-figure="{key}"></div></div>'
            for key, title, text, _ in surface_figures(sweep)
        ]
    else:
        blocks = [
            f'<div class="card"><h3>{title}</h3><p class="caption">{escape(text)}</p>{_heat_map(trials, axes, names, value)}</div>'
            for _, title, text, value in surface_figures(sweep)
        ]
    columns = len(axis_values([run.point for run in trials], axes[-1]))
    least = 340 if continuous else max(340, CELL_WIDTH * (columns + 1) + 30)
    parallel = ""
    if len(sweep.keys) > 2:
        parallel = (
            '<div class="card" style="margin-top:12px"><h3>All searched settings</h3><p class="caption">One line a point, through its '
            f'values; the more intense, the higher the objective.</p><div class="plot wide" data-parallel="{number}"></div></div>'
        )
    return (
        f'<section><h2>Surface over {escape(heading)}</h2><p class="caption">{escape(caption)}</p>'
        f'<div class="surfaces" style="--least:{least}px">{"".join(blocks)}</div>{parallel}</section>'
    )


def _heat_map(trials: list[Run], axes: list[str], names: dict[str, str], value: Callable[[Run], float | None]) -> str:
    row_key, column_key = (axes[0], axes[1]) if len(axes) > 1 else (None, axes[0])
    rows = axis_values([run.point for run in trials], row_key) if row_key else [None]
    columns = axis_values([run.point for run in trials], column_key)

    def at(row: Any, column: Any) -> Cell:
        return cell(
            [run for run in trials if run.point.get(column_key) == column and (row_key is None or run.point.get(row_key) == row)], value
        )

    cells = [[at(row, column) for column in columns] for row in rows]
    means = [each.mean for line in cells for each in line if each.count]
    low, high = (min(means), max(means)) if means else (0.0, 0.0)
    corner = f'<th class="axis">{escape(names[row_key])}</th>' if row_key else ""
    body = []
    for row, line in zip(rows, cells, strict=True):
        label = f'<th scope="row">{escape(value_text(row))}</th>' if row_key else ""
        body.append(f"<tr>{label}{''.join(_heat_cell(each, low, high) for each in line)}</tr>")
    head = "".join(f'<th scope="col">{escape(value_text(column))}</th>' for column in columns)
    return (
        f'<div style="overflow-x:auto"><table class="heat" style="min-width:{CELL_WIDTH * (len(columns) + 1)}px"><thead><tr>'
        f'{corner and corner.replace("<th ", "<th rowspan=2 ")}<th class="axis" colspan="{len(columns)}">{escape(names[column_key])}</th>'
        f"</tr><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _heat_cell(each: Cell, low: float, high: float) -> str:
    if not each.count:
        return f'<td class="empty">{escape(each.state or "not tried")}</td>'
    share = (each.mean - low) / (high - low) if high > low else 0.5
    deviation = "" if math.isnan(each.deviation) else f"<small>± {each.deviation:.3f}</small>"
    if each.count < each.runs:
        deviation += f"<small>{each.count} of {each.runs} trials</small>"
    top = ' class="top"' if each.mean == high > low else ""
    return f'<td{top} style="--heat:{100 * share:.0f}%">{each.mean:.3f}{deviation}</td>'


def _curves_section(data: dict[str, Any]) -> str:
    if not data["charts"] and not data["parts"]:
        return '<section><h2>Curves</h2><p class="caption">No run has finished a step or an evaluation yet.</p></section>'
    seeds = max((point["runs"] for point in data["points"]), default=1)
    caption = "By training step, a colour for each point of settings." if len(data["points"]) > 1 else "By training step."
    if seeds > 1:
        caption += " Lines are means over seeds, bands reach from the smallest to the largest."
    if data["trunks"]:
        caption += " Grey: the trunk that trials share, up to where they branch (dotted)."
    if len(data["points"]) > 1:
        caption += " A click on an entry of the legend hides or shows it everywhere."
    caption += " Dragging in a plot zooms, a double click goes back."
    blocks = []
    for group in dict.fromkeys([chart["group"] for chart in data["charts"]] + (["Time"] if data["parts"] else [])):
        cards = [
            _card(chart["title"], chart["caption"], f'data-chart="{chart["id"]}"') for chart in data["charts"] if chart["group"] == group
        ]
        if group == "Time" and data["parts"]:
            text = "Mean seconds of a step's parts; the longest is where speed is to be won."
            if len(data["parts"]) == 1:
                text = "Seconds of a step's parts, on top of each other; the widest is where speed is to be won."
            cards.append(_card("Time by part", text, "data-parts", "card row" if len(data["parts"]) > 1 else "card"))
        blocks.append(f'<h4>{group}</h4><div class="charts">{"".join(cards)}</div>')
    zero = f'<p class="note">Not drawn, since 0 throughout: {escape(", ".join(data["zero"]))}.</p>' if data["zero"] else ""
    long_bar = " long" if len(data["points"]) > 4 else ""
    return (
        f'<section id="curves"><h2>Curves</h2><p class="caption">{caption}</p>'
        f'<div class="bar{long_bar}"><div class="legend" role="group" aria-label="Points of settings"></div><span class="spacer"></span>'
        '<span class="group" role="group" aria-label="Training curves">'
        '<button type="button" data-smooth="0" aria-pressed="true">raw</button>'
        f'<button type="button" data-smooth="1" aria-pressed="false">smoothed</button></span></div>{"".join(blocks)}{zero}</section>'
    )


def _scores_section(data: dict[str, Any]) -> str:
    if not data["scores"]:
        return (
            '<section><h2>Scores</h2><p class="caption">No run has an evaluation with samples yet (evaluations/*.parquet), so there are no '
            "scores or solutions to show.</p></section>"
        )
    return (
        '<section id="scores"><h2>Scores</h2><p class="caption">The self-reward of held-out solutions, in the newest evaluation with '
        "scores. Above 0.5 the model calls its solution right.</p>"
        f'<div class="bar">{_run_select(data)}</div><p class="facts" id="facts"></p><div class="charts two" id="score-plots">'
        + _card(
            "Scores of right and of wrong solutions",
            "Share of each class by score. Two hills, apart from each other, are good.",
            'id="histogram"',
        )
        + _card(
            "Reliability",
            "Share that is right among solutions of about one score; on the diagonal, the score is a probability. Larger: more.",
            'id="reliability"',
        )
        + "</div></section>"
    )


def _samples_section(data: dict[str, Any]) -> str:
    if not data["scores"]:
        return ""
    columns = ["problem", "solution", "reference", "answer", "verdict", "score", "off by"]
    head = "".join(_column(name, "", "number" if name in ("score", "off by") else "") for name in columns)
    filters = [("all", "all"), ("high", "wrong but scored high"), ("low", "right but scored low"), ("unfinished", "unfinished")]
    buttons = "".join(
        f'<button type="button" data-filter="{key}" aria-pressed="{str(key == "all").lower()}">{text}</button>' for key, text in filters
    )
    return (
        '<section id="samples"><h2>Sample solutions</h2><p class="caption">The most confident mistakes first: those whose score, clipped '
        "to 0 to 1, is furthest from the verdict (1 right, 0 wrong; “off by”).</p>"
        f'<div class="bar long">{_run_select(data)}<span class="group" role="group" aria-label="Which solutions">{buttons}</span></div>'
        '<p class="note" id="samples-note" aria-live="polite"></p><div class="scroll" style="margin-top:6px">'
        f'<table class="samples sortable"><thead><tr>{head}</tr></thead><tbody></tbody></table></div>'
        '<button type="button" class="more" id="more-samples"></button></section>'
    )


def _run_select(data: dict[str, Any]) -> str:
    chosen = data["selected"]
    options = "".join(
        f'<option value="{number}"{" selected" if number == chosen else ""}>{escape(entry["name"])}</option>'
        for number, entry in enumerate(data["scores"])
    )
    return f'<label class="group">Run <select data-run>{options}</select></label>'


def _card(title: str, caption: str, attributes: str, kind: str = "card") -> str:
    return (
        f'<div class="{kind}"><h3>{title}</h3><p class="caption">{escape(caption)}</p>'
        f'<div class="plot" role="img" aria-label="{title}" {attributes}></div></div>'
    )


def _notes(notes: list[str]) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes) + "</main>"


def _column(name: str, explanation: str, kind: str = "") -> str:
    title = f' title="{escape(explanation)}"' if explanation else ""
    return f'<th scope="col" aria-sort="none"{f" class={kind}" if kind else ""}><button type="button"{title}>{escape(name)}</button></th>'


def _setting(value: Any, known: bool) -> str:
    if not known:
        return '<td class="none">–</td>'
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"<td{f' data-value={value!r}' if number else ''}>{escape(shortened(value_text(value), 80))}</td>"


def _number_cell(value: float | None) -> str:
    return '<td class="number none">–</td>' if value is None else f'<td class="number" data-value="{value!r}">{value:.3f}</td>'


def _status(run: Run) -> str:
    error = f'<span class="error">{escape(shortened(run.error, 300))}</span>' if run.error else ""
    return f'<span class="status-{escape(run.status)}">{escape(run.status)}</span>{error}'


def _whole_names(report: Report) -> list[str]:
    return [sweep.name for sweep in report.sweeps] + [run.name for run in report.runs if run.sweep is None]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """Compact, with 4 significant digits: what is not finite becomes null, since JSON has no word for it."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}") if math.isfinite(value) else None
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return json.dumps(plain(data), separators=(",", ":"), allow_nan=False)
