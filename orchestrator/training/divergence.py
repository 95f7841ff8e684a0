"""What ends a run whose numbers are not finite, and the likely cause in words."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.training import RunConfig
from orchestrator.errors import RunError

HIGH_LEARNING_RATE = 1e-2
"""A learning rate above it is a likely cause of values that are not finite."""


class Diverged(RunError):
    """Losses, gradients or weights are not finite, and going on would not change that."""


def diverged(problem: str, config: RunConfig, faults: Sequence[str], newest: Path | None) -> Diverged:
    """The error that ends a run.

    Args:
        problem: What is not finite, as the start of a sentence.
        faults: What was not finite in the last step, of `FAULTS`; empty for the weights.
        newest: The newest whole checkpoint.
    """
    learning, rollout = config.learning, config.rollout
    if list(faults) == ["the engine's log-probs"]:
        cause = f"the engine's precision: raise rollout.dtype={rollout.dtype} to float32"
    elif list(faults) == ["the reference model's log-probs"]:
        cause = f"the reference model's weights: look at {config.model.path}"
    elif learning.lr > HIGH_LEARNING_RATE:
        cause = f"learning.lr={learning.lr:g}: lower it to at most {HIGH_LEARNING_RATE:g}"
    else:
        cause = (
            f"a sample of the kept batches, learning.dtype={learning.dtype}, or learning.lr={learning.lr:g}: "
            "replay the batch, and train in float32 or with a lower rate"
        )
    kept = f"The last healthy checkpoint is {newest}" if newest else "There is no checkpoint yet"
    return Diverged(f"{problem}. The likely cause is {cause}. {kept}.")
