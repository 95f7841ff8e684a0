"""Steps whose update no rank took, because a number was not finite; many in a row end the run."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from orchestrator.messages.batches import StepSums
from orchestrator.pools.collect import Batch
from orchestrator.training.session import Session, keep_rollouts


def note_skipped(
    session: Session,
    sums: Sequence[StepSums],
    batch: Batch,
    scores: Float32[np.ndarray, "samples"] | None,
    advantages: Float32[np.ndarray, "samples"],
) -> None:
    """Keep and name the batch of the last finished step, if its update was skipped.

    Raises:
        Diverged: That is so for `learning.max_skipped_steps` steps in a row.
    """
    skipped, faults = sums[0].skipped, f"{' and '.join(sums[0].faults)} are not finite"
    if not skipped:
        session.skipped_in_a_row = 0
        return
    session.skipped_in_a_row += 1
    path = keep_rollouts(session, batch, scores, advantages)
    session.note(
        f"step {session.step}: {skipped} update(s) skipped on all ranks, since {faults}. The batch is kept: "
        f"look at it with laser replay {path}"
    )
    if session.skipped_in_a_row >= session.config.learning.max_skipped_steps:
        raise session.diverged(
            f"{session.skipped_in_a_row} steps in a row, up to step {session.step}, had no update: {faults}",
            sums[0].faults,
        )
