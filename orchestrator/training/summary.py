"""The result of a run, as `summary.json` holds it."""

import math
from typing import Any

from orchestrator.training.session import Session


def summary_of(session: Session, trained: dict[str, float] | None) -> dict[str, Any]:
    """The run's result, JSON-ready: figures of the initial and of the trained model."""
    return {
        "base": _json_figures(session.base),
        "trained": _json_figures(trained),
        "problems": sum(len(held_out.prompts) for held_out in session.prepared.eval),
        "samples_per_problem": session.config.evaluation.samples_per_problem,
        "c_ref": session.c_ref,
        "steps": session.step,
        "seconds": round(session.seconds, 1),
        "start_seconds": _rounded(session.start.first_token_s),
        "start_pools_seconds": _rounded(session.start.pools_s),
        "mlflow_run_id": session.tracker.run_id,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _json_figures(figures: dict[str, float] | None) -> dict[str, float | None] | None:
    """JSON has no NaN: a figure that the samples do not define is null."""
    if figures is None:
        return None
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
