"""A run's summary as a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.measures import Place, shown_in
from orchestrator.terminal import SafeConsole, clock, figure, program
from orchestrator.tracking.address import tracking_command


def show_summary(
    summary: Mapping[str, Any], folder: Path, tracking_uri: str, console: Console | None = None
) -> None:
    """Show the base model against the trained model, where the results are, and what to do next."""
    console = console or SafeConsole(highlight=False)
    if summary["base"] and summary["trained"]:
        k = summary["samples_per_problem"]
        samples = f"{summary['problems']} held-out problems x {k} samples"
        table = Table(title=f"{samples}, {summary['steps']} steps, {clock(summary['seconds'])}")
        for name in ("", "base", "trained", "change"):
            table.add_column(name, justify="left" if not name else "right")
        for measure in shown_in(Place.SUMMARY):
            base, trained = summary["base"][measure.key], summary["trained"][measure.key]
            change = f"{trained - base:+.3f}" if base is not None and trained is not None else ""
            table.add_row(measure.title.replace("@k", f"@{k}"), figure(base), figure(trained), change)
        console.print(table)
    laser = program("laser")
    lines = [
        f"results   {folder}/summary.json",
        f"model     {folder}/export",
        f"curves    {tracking_command(tracking_uri, folder)}",
        f"next      {laser} report {folder}   shows the run as one page",
    ]
    if summary["c_ref"] is not None:
        lines.append(f"          {laser} serve --model {folder}   serves the model with its score")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
