"""What a run is to the sweep that it belongs to: the shared trunk of some trials, or a trial, which may branch from a trunk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.bundles import Bundles


@dataclass(frozen=True)
class SweepRole:
    """Given to `train` by a sweep."""

    tags: Mapping[str, str]
    """Of the MLflow run; with its parent's."""
    bundles: Bundles
    """What the placement group around the run holds."""
    is_trunk: bool = False
    """A trunk trains the steps before the self-reward joins, for trials with any beta_v: it takes no score, and no figure needs one."""
    trunk: Path | None = None
    """Folder of the finished trunk whose last checkpoint a trial starts from."""
    report: Callable[[int, Mapping[str, float]], None] = lambda step, figures: None
    """Called with the figures of each evaluation on the way."""
