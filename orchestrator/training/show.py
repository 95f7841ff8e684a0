"""A run's summary as a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.terminal import clock, figure, program
from orchestrator.tracking.address import tracking_command

SUMMARY_ROWS = {
    "accuracy": "accuracy",
    "self_verification_f1": "self-verification F1",
    "auroc": "AUROC of the score",
    "auroc_problem_only": "  of the problem's kind alone",
    "auroc_within_problem": "  within a problem",
    "maj_at_k": "Maj@{k}",
    "weighted_at_k": "weighted Maj@{k}",
    "finished_share": "finished",
}


def show_summary(
    summary: Mapping[str, Any], folder: Path, tracking_uri: str, console: Console | None = None
) -> None:
    """Show the base model against the trained model, where the results are, and what to do next."""
    console = console or Console(highlight=False)
    if summary["base"] and summary["trained"]:
        k = summary["samples_per_problem"]
        samples = f"{summary['problems']} held-out problems x {k} samples"
        table = Table(title=f"{samples}, {summary['steps']} steps, {clock(summary['seconds'])}")
        for name in ("", "base", "trained", "change"):
            table.add_column(name, justify="left" if not name else "right")
        for key, label in SUMMARY_ROWS.items():
            base, trained = summary["base"][key], summary["trained"][key]
            known = base is not None and trained is not None
            table.add_row(
                label.format(k=k), figure(base), figure(trained), f"{trained - base:+.3f}" if known else ""
            )
        console.print(table)
    laser = program("laser")
    lines = [
        f"results   {folder}/summary.json   model {folder}/export",
        f"curves    {tracking_command(tracking_uri, folder)}",
        f"next      {laser} report {folder}   shows the run as one page",
    ]
    if summary["c_ref"] is not None:
        lines.append(f"          {laser} serve --model {folder}   serves the model with its score")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
