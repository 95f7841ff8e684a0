"""Optuna's TPE for a sweep whose points are proposed, as a searcher of Ray Tune.

In: a plan, and the ledger of earlier calls. Out: a searcher that knows the earlier results, proposes
interrupted points first, and proposes no point twice.
"""

import json
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from orchestrator.config.sweep import Values
from orchestrator.errors import ConfigError
from orchestrator.sweeps.plan import SweepPlan
from orchestrator.sweeps.results import Ledger, State, Trial
from orchestrator.sweeps.space import Point, in_effect, rounded
from orchestrator.sweeps.trial import NO_VALUE

MAX_PROPOSALS = 200
"""Known or invalid proposals in a row after which the space counts as exhausted."""


class PointSearch(Searcher):
    """Proposes new points of a plan's space.

    Attributes:
        left: Number of points that it has not proposed yet.
    """

    def __init__(self, plan: SweepPlan, ledger: Ledger) -> None:
        super().__init__(metric="objective", mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweep = plan.sweep
        assert sweep.search.points is not None
        self.plan = plan
        by_point: dict[str, list[Trial]] = {}
        for trial in ledger.trials.values():
            by_point.setdefault(json.dumps(trial.point), []).append(trial)
        over = {
            key: trials
            for key, trials in by_point.items()
            if len(trials) == len(sweep.seeds)
            and all(trial.status in (State.FINISHED, State.PRUNED) for trial in trials)
        }
        self.optuna = OptunaSearch(
            {key: _distribution(values) for key, values in sweep.space.items()},
            metric="objective",
            mode="max",
            seed=sweep.search.seed,
            points_to_evaluate=[self._proposal(json.loads(key)) for key in by_point if key not in over],
        )
        for key, trials in over.items():
            objectives = [NO_VALUE if trial.objective is None else trial.objective for trial in trials]
            self.optuna.add_evaluated_point(
                self._proposal(json.loads(key)), sum(objectives) / len(objectives)
            )
        self.proposed = set(over)
        self.left = max(0, sweep.search.points - len(over))
        self.names: dict[str, str] = {}
        """Optuna's name of each trial, by Tune's."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next point, as `{"point": ...}`, or `Searcher.FINISHED` when the space is exhausted."""
        for attempt in range(MAX_PROPOSALS):
            name = f"{trial_id}-{attempt}"
            proposal = self.optuna.suggest(name)
            point = self.point(proposal)
            key = json.dumps(point)
            if key not in self.proposed and self._is_valid(point):
                self.proposed.add(key)
                self.names[trial_id] = name
                return {"point": point}
            self.optuna.on_trial_complete(name, error=True)
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.optuna.on_trial_complete(self.names[trial_id], result, error)

    def point(self, proposal: dict[str, Any]) -> Point:
        """The point that is trained for a proposal: rounded, without the keys that have no effect."""
        space = self.plan.sweep.space
        return in_effect(
            self.plan.sweep,
            self.plan.base,
            {key: rounded(proposal[key], values) for key, values in space.items()},
        )

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: a sweep resumes from its ledger."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep resumes from its ledger, not from Tune's state")

    def _is_valid(self, point: Point) -> bool:
        try:
            self.plan.trial(point, self.plan.sweep.seeds[0])
        except ConfigError:
            return False
        return True

    def _proposal(self, point: Point) -> dict[str, Any]:
        """A point as Optuna proposes it, which has a value for every key, also for one without effect."""
        return {
            key: point.get(key, getattr(values, values.kind)[0])
            for key, values in self.plan.sweep.space.items()
        }


def _distribution(values: Values) -> BaseDistribution:
    if values.choice is not None:
        return CategoricalDistribution(values.choice)
    bounds = values.uniform or values.log_uniform
    assert bounds is not None, "SweepConfig refuses a grid with Optuna"
    return FloatDistribution(*bounds, log=values.log_uniform is not None)
