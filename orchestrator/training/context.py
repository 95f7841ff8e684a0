"""What surrounds a run: nothing, or the sweep whose trial or trunk it is.

Every run has a context, so that no code asks whether a run belongs to a sweep.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.cluster.bundles import Bundles, bundles_for
from orchestrator.cluster.nodes import Resources
from orchestrator.config.training import RunConfig


@dataclass(frozen=True)
class RunContext:
    """Made by a sweep for each of its trials and trunks; `standalone()` for every other run."""

    in_trial: bool = True
    """A Ray Tune trial: its placement group is the run's, and the sweep takes the signals."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the MLflow run, its parent's id among them."""
    bundles: Bundles | None = None
    """What the trial's placement group holds; None where the run makes its own."""
    is_trunk: bool = False
    """The run trains the steps before the self-reward joins, for trials with any beta_v: it has no score."""
    trunk: Path | None = None
    """Folder of the finished trunk whose last checkpoint the trial starts from."""
    report: Callable[[int, Mapping[str, float]], None] = lambda step, figures: None
    """Called with the step and the figures of each evaluation between the first step and the last."""
    started_at: float = field(default_factory=time.monotonic)
    """When the command or the trial started, on the clock of `time.monotonic`."""
    lock_patience_s: float = 0.0
    """Seconds to wait for the run's folder, which the process of a killed sweep may still hold."""

    def place(self, config: RunConfig, nodes: Callable[[], list[Resources]]) -> Bundles:
        """The bundles of the run's placement group.

        Args:
            nodes: The nodes to place them on; called only for a run that makes its own placement group.

        Raises:
            ConfigError: The nodes cannot hold the run.
        """
        return bundles_for(config, nodes()) if self.bundles is None else self.bundles


def standalone(started_at: float | None = None) -> RunContext:
    """The context of a run that belongs to no sweep.

    Args:
        started_at: When its command started, on the clock of `time.monotonic`; now unless given.
    """
    return RunContext(in_trial=False, started_at=time.monotonic() if started_at is None else started_at)
