"""LaSeR: reinforcement learning with last-token self-rewarding, on Ray. What a notebook needs:

    from orchestrator import load_config, train, with_settings

    config = load_config("experiments/quickstart.yaml")
    outcome = train(with_settings(config, {"run.name": "mine", "loss.alpha": 1.0}))
    outcome.summary["trained"]["accuracy"]

    from orchestrator import load_sweep, report, sweep

    found = sweep(load_sweep("experiments/sweeps/quickstart.yaml"))
    found.best.point, found.best.objective, found.model
    report([found.folder], "sweep.html")

The command line is a thin layer over these. A name is imported at its first use, since torch and vLLM take
seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers
    from dashboards.report import write_report as report
    from orchestrator.config.evaluation import EvalConfig
    from orchestrator.config.schema import with_settings
    from orchestrator.config.sweep import SweepConfig, load_sweep
    from orchestrator.config.training import RunConfig, load_config
    from orchestrator.errors import ConfigError, DataError, LaserError, PoolError, RunError
    from orchestrator.evaluation.run import evaluate
    from orchestrator.sweeps.results import SweepOutcome
    from orchestrator.sweeps.sweep import sweep
    from orchestrator.training.run import Outcome, train

_HOMES = {
    "ConfigError": "orchestrator.errors",
    "DataError": "orchestrator.errors",
    "EvalConfig": "orchestrator.config.evaluation",
    "LaserError": "orchestrator.errors",
    "Outcome": "orchestrator.training.run",
    "PoolError": "orchestrator.errors",
    "RunConfig": "orchestrator.config.training",
    "RunError": "orchestrator.errors",
    "SweepConfig": "orchestrator.config.sweep",
    "SweepOutcome": "orchestrator.sweeps.results",
    "evaluate": "orchestrator.evaluation.run",
    "load_config": "orchestrator.config.training",
    "load_sweep": "orchestrator.config.sweep",
    "report": "dashboards.report:write_report",
    "sweep": "orchestrator.sweeps.sweep",
    "train": "orchestrator.training.run",
    "with_settings": "orchestrator.config.schema",
}
"""Module of each public name; `module:name` where it has another name there."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
    module, _, original = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), original or name)


def __dir__() -> list[str]:
    return sorted(__all__)
