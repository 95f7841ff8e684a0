"""Optuna's TPE for a sweep whose values are proposed and not drawn, through Ray Tune's searcher.

In: the space, and the ledger of earlier calls. Out: a searcher that knows what has been found, and proposes first what was cut off.
"""

import json
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.search.optuna import OptunaSearch

from orchestrator.sweeps.results import OVER, Ledger, State
from orchestrator.sweeps.settings import SweepConfig, Values
from orchestrator.sweeps.trial import NO_VALUE


def optuna_search(sweep: SweepConfig, ledger: Ledger) -> tuple[OptunaSearch, int]:
    """The searcher, and the number of points that it is still to propose."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert sweep.search.points is not None
    by_point: dict[str, list[dict[str, Any]]] = {}
    for trial in ledger.before["trials"].values():
        if trial["seed"] in sweep.seeds:
            by_point.setdefault(json.dumps(trial["point"]), []).append(trial)
    over = {
        key: trials
        for key, trials in by_point.items()
        if len(trials) == len(sweep.seeds) and all(trial["status"] in OVER and trial["status"] != State.FAILED for trial in trials)
    }
    searcher = OptunaSearch(
        {key: _distribution(values) for key, values in sweep.space.items()},
        metric="objective",
        mode="max",
        seed=sweep.search.seed,
        points_to_evaluate=[_proposal(sweep, json.loads(key)) for key in by_point if key not in over],
    )
    for key, trials in over.items():
        objectives = [NO_VALUE if trial["objective"] is None else trial["objective"] for trial in trials]
        searcher.add_evaluated_point(_proposal(sweep, json.loads(key)), sum(objectives) / len(objectives))
    return searcher, max(0, sweep.search.points - len(over))


def _distribution(values: Values) -> BaseDistribution:
    if values.choice is not None:
        return CategoricalDistribution(values.choice)
    bounds = values.uniform or values.log_uniform
    assert bounds is not None, "a grid is refused with Optuna"
    return FloatDistribution(*bounds, log=values.log_uniform is not None)


def _proposal(sweep: SweepConfig, point: dict[str, Any]) -> dict[str, Any]:
    """A point as Optuna proposes it: with some value also for a key that was not in effect."""
    return {
        key: point.get(key, (values.choice or values.uniform or values.log_uniform or (None,))[0]) for key, values in sweep.space.items()
    }
