"""LaSeR: reinforcement learning with last-token self-rewarding, on Ray. What a notebook needs:

    from orchestrator import load_config, train, with_settings

    config = load_config("experiments/quickstart.yaml")
    outcome = train(with_settings(config, {"run.name": "mine", "loss.alpha": 1.0}))
    outcome.summary["trained"]["accuracy"]

    from orchestrator import load_sweep, report, sweep

    found = sweep(load_sweep("experiments/sweeps/quickstart.yaml"))
    found.best.point, found.best.objective, found.model
    report([found.folder], "sweep.html")

The command line is a thin layer over these. A name is imported when it is first used, since torch and vLLM take seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dashboards.report import write_report as report
    from orchestrator.config import RunConfig, load_config, with_settings
    from orchestrator.errors import ConfigError, DataError, LaserError, PoolError, RunError
    from orchestrator.evaluations.run import evaluate
    from orchestrator.evaluations.settings import EvalConfig
    from orchestrator.run import Outcome, train
    from orchestrator.sweeps.settings import SweepConfig, load_sweep
    from orchestrator.sweeps.sweep import SweepOutcome, sweep

__all__ = [
    "ConfigError", "DataError", "EvalConfig", "LaserError", "Outcome", "PoolError", "RunConfig", "RunError", "SweepConfig", "SweepOutcome",
    "evaluate", "load_config", "load_sweep", "report", "sweep", "train", "with_settings",
]  # fmt: skip

_HOMES = {
    "orchestrator.config": ("RunConfig", "load_config", "with_settings"),
    "orchestrator.errors": ("ConfigError", "DataError", "EvalConfig", "LaserError", "PoolError", "RunError"),
    "orchestrator.evaluations.run": ("evaluate",),
    "orchestrator.evaluations.settings": ("EvalConfig",),
    "orchestrator.run": ("Outcome", "train"),
    "orchestrator.sweeps.settings": ("SweepConfig", "load_sweep"),
    "orchestrator.sweeps.sweep": ("SweepOutcome", "sweep"),
}
_PLACES = {name: (module, name) for module, names in _HOMES.items() for name in names} | {"report": ("dashboards.report", "write_report")}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
