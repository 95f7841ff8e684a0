"""An evaluation shown to the user: its progress, its tables, and accuracy against tokens as a picture."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator.algorithm.metrics import paired_difference
from orchestrator.evaluation.figures import EvalResults, Figures, SetResults
from orchestrator.measures import AVERAGE, Place, shown_in
from orchestrator.shown_text import without_secrets
from orchestrator.storage.files import atomically
from orchestrator.terminal import LOGGER, SafeConsole, clock

PLAIN_LINES_EVERY_S = 10.0
FEWEST_FOR_COST = 4
"""With fewer samples per problem the rules of sampling hardly differ, and no cost table is shown."""

RULE_COLOURS = {
    "majority": "tab:gray",
    "weighted": "tab:blue",
    "adaptive": "tab:green",
    "adaptive majority": "tab:olive",
}


class EvalProgress:
    """Samples done, their rate and the time left: a bar in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or SafeConsole(highlight=False)
        self.bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("ETA {task.fields[eta]}"),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task: Any = None
        self.title = ""
        self.total = 0
        self.done = 0
        self.first = 0
        """Samples done at `first_at`."""
        self.first_at: float | None = None
        """Time of the first samples; the rate counts from there."""
        self.said_at = 0.0
        """Time of the last plain line."""

    def __enter__(self) -> "EvalProgress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, message: str) -> None:
        """Show a line above the bar, and log it."""
        message = without_secrets(message)
        self.console.print(escape(message), soft_wrap=True)
        LOGGER.info(escape(message))  # The log reads markup, as the panel of a run does.

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Start a new bar.

        Args:
            title: What happens to the samples.
            total: Number of samples.
            done: Samples that need no more work.
        """
        self.title = title
        self.total = total
        self.done = done
        self.first_at = None
        self.said_at = time.monotonic()
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(title, total=total, completed=done, rate="", eta="-")

    def advance(self, samples: int) -> None:
        """Count finished samples. The first ones only start the clock, because they waited for the pools."""
        self.done += samples
        now = time.monotonic()
        if self.first_at is None:
            self.first_at, self.first = now, self.done
        rate = (self.done - self.first) / (now - self.first_at) if now > self.first_at else 0.0
        speed = f"{rate:.1f} samples/s" if rate else ""
        eta = clock((self.total - self.done) / rate) if rate else "-"
        self.bar.update(self.task, completed=self.done, rate=speed, eta=eta)
        if self.bar.disable and (now - self.said_at > PLAIN_LINES_EVERY_S or self.done == self.total):
            self.said_at = now
            self.console.print(f"{self.title} {self.done}/{self.total}  {speed}  ETA {eta}", soft_wrap=True)


def show_results(results: EvalResults, console: Console | None = None) -> None:
    """Print the figures as tables, then notes on the score, on failed checks and on the files."""
    console = console or SafeConsole(highlight=False)
    console.print(_figures_table(results))
    console.print(_votes_table(results.sets))
    for found in results.sets:
        if found.cost and found.samples_per_problem >= FEWEST_FOR_COST:
            console.print(_cost_table(found))
    for line in _notes(results):
        console.print(line, soft_wrap=True, markup=False)


def save_cost_figure(sets: Sequence[SetResults], path: Path) -> None:
    """Draw accuracy against tokens per problem as PNG, with a panel for each set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(sets), 4), layout="constrained")
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    for axes, found in zip(panels, sets, strict=True):
        for rule in dict.fromkeys(point.rule for point in found.cost):
            points = sorted(
                (point for point in found.cost if point.rule == rule), key=lambda point: point.tokens
            )
            errors = [0.0 if math.isnan(point.standard_error) else point.standard_error for point in points]
            tokens, accuracy = [point.tokens for point in points], [point.accuracy for point in points]
            axes.errorbar(
                tokens,
                accuracy,
                errors,
                label=rule,
                color=RULE_COLOURS[rule],
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.2,
            )
        axes.set(xlabel="tokens a problem (ticks: 1, 2, 4 ... samples)", ylabel="accuracy", title=found.name)
        if not found.cost:
            continue
        axes.set_xscale("log", base=2)
        ticks = [point.tokens for point in found.cost if point.rule == "majority"]
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks], minor=False)
        axes.legend(loc="lower right")
    with atomically(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _figures_table(results: EvalResults) -> Table:
    table = Table(title=escape(results.model))
    columns = [(found.name, found.figures) for found in results.sets]
    if len(columns) > 1:
        columns.append((AVERAGE, results.average))
    table.add_column("", no_wrap=True)
    for name, _ in columns:
        table.add_column(escape(name), justify="right", no_wrap=True)
    sizes = [f"{found.problems} x {found.samples_per_problem}" for found in results.sets]
    table.add_row("problems x samples", *sizes, *[""] * (len(columns) - len(sizes)))
    for measure in shown_in(Place.EVALUATION):
        if any(not math.isnan(getattr(figures, measure.key)) for _, figures in columns):
            table.add_row(measure.title, *(_cell(figures, measure.key) for _, figures in columns))
    return table


def _cell(figures: Figures, key: str) -> str:
    if key == "accuracy_low":
        return escape(f"[{_number(figures.accuracy_low)}, {_number(figures.accuracy_high)}]")
    value = getattr(figures, key)
    return f"{value:.1f}" if key == "response_tokens" else _number(value)


def _votes_table(sets: Sequence[SetResults]) -> Table:
    table = Table(title="k of a problem's samples")
    for name in ("set", "k", *(measure.title for measure in shown_in(Place.VOTES))):
        table.add_column(name, justify="left" if name == "set" else "right")
    for found in sets:
        for row in found.at_k:
            table.add_row(
                escape(found.name),
                str(row.k),
                _number(row.pass_at_k),
                _with_error(row.maj_at_k, row.maj_error),
                _with_error(row.weighted_at_k, row.weighted_error),
                _number(row.best_of_k),
            )
        table.add_section()
    return table


def _cost_table(found: SetResults) -> Table:
    majority = [point for point in found.cost if point.rule == "majority"][-1]
    table = Table(title=f"{escape(found.name)}: accuracy against tokens a problem")
    for name in (
        "rule",
        "k or confidence",
        "accuracy",
        f"against Maj@{majority.parameter:g}",
        "tokens",
        "samples",
    ):
        table.add_column(
            name, justify="left" if name == "rule" else "right", no_wrap=name != "k or confidence"
        )
    rule = None
    for point in found.cost:
        if rule not in (None, point.rule):
            table.add_section()
        rule = point.rule
        # Both rules saw the same problems and orders: the difference has a smaller error than the accuracies.
        difference, error = paired_difference(point.accuracy_by_problem, majority.accuracy_by_problem)
        gain = f"{difference:+.3f} ± {error:.3f}" if point is not majority else ""
        accuracy = _with_error(point.accuracy, point.standard_error)
        numbers = (accuracy, gain, f"{point.tokens:.1f}", f"{point.samples:.2f}")
        table.add_row(point.rule, f"{point.parameter:g}", *numbers)
    return table


def _notes(results: EvalResults) -> list[str]:
    lines = []
    if results.score is not None:
        score, unfinished = results.score, sum(found.unfinished for found in results.sets)
        lines += [
            f"score     {score['origin']}: "
            f"{score['beta_v']:g} * (log pi({score['token']}) - ({score['c_ref']:.4f}))",
            f"          F1, AUROC and calibration leave out {unfinished} unfinished samples",
        ]
    unverified = sum(found.unverified for found in results.sets)
    if unverified or results.undecided:
        lines.append(
            f"warning   the check of {unverified} samples timed out or failed: "
            "they count neither as correct nor as wrong, and have no vote; "
            f"{results.undecided} comparisons of two answers timed out or failed: "
            "those answers count as different"
        )
    lines.append(f"results   {results.folder}/results.json, samples.jsonl, accuracy-against-tokens.png")
    return lines


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _with_error(value: float, error: float) -> str:
    return _number(value) + (f" ± {error:.3f}" if error > 0 else "")
