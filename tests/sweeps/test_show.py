"""A sweep's outcome as text."""

import io
from pathlib import Path

from rich.console import Console

from orchestrator.sweeps.results import State, SweepBest, SweepOutcome, SweepWork, Trial
from orchestrator.sweeps.show import rank, show_outcome


def trial(name: str, status: State, objective: float | None = None, error: str | None = None) -> Trial:
    return Trial(
        name, f"trials/{name}", {"loss.alpha": 0.1}, 0, 6, status, 6, objective=objective, error=error
    )


def test_trials_rank_by_state_then_by_metric_and_undefined_metrics_are_last():
    trials = [
        trial("failed", State.FAILED),
        trial("undefined", State.FINISHED),
        trial("negative", State.FINISHED, -0.5),
        trial("pruned", State.PRUNED, 0.9),
        trial("best", State.FINISHED, 0.7),
    ]
    assert [trial.name for trial in sorted(trials, key=rank)] == [
        "best",
        "negative",
        "undefined",
        "pruned",
        "failed",
    ]


def test_the_outcome_names_the_best_point_the_work_and_each_failure():
    trials = [
        trial("a", State.FINISHED, 0.7),
        trial("b", State.FAILED, error="loss.c_ref: not [valid]"),
        trial("c", State.FINISHED, 0.5),
    ]
    best = SweepBest({"loss.alpha": 0.1}, 0.7, 2, "a")
    outcome = SweepOutcome(Path("runs/s"), trials, best, SweepWork(15, 24), None, None)
    console = Console(width=160, record=True, force_terminal=False, file=io.StringIO())
    show_outcome(outcome, ["loss.alpha"], "http://server:5000", console)
    text = console.export_text()
    assert "failed  b: loss.c_ref: not [valid]" in text
    assert "best      loss.alpha=0.1   objective 0.700 (mean over 2 seeds)" in text
    assert "work      15 training steps; 24 without shared trunks (0.62 of them)" in text
    assert "curves    http://server:5000" in text
    assert "report" not in text, "none was written"
    assert "model" not in text, "none was registered"
