"""What a run's trace shows: groups, weight swaps, the passes of ranks, and the parts of the driver's step.

In: values that workers return, the ranks' sums, and the session's clock. Out: spans of `tracking.trace`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.messages.batches import StepSums
from orchestrator.messages.spans import Span
from orchestrator.messages.trajectories import GroupSummary
from orchestrator.pools.task import Task
from orchestrator.tracking.trace import TRACE_FILE, Trace


class RunTrace:
    """The trace of one run.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self.trace = Trace(folder / TRACE_FILE)

    def returned(self, pool: str, worker: int, task: Task | None, value: Any) -> None:
        """An `Observer`: a worker of a pool has returned a value."""
        if isinstance(value, Span):
            self.trace.add(pool, worker, value)
        elif task is not None and isinstance(value, GroupSummary) and value.generated is not None:
            arguments = {
                **task.labels,
                "samples": len(value.lengths),
                "tokens": int(value.lengths.sum()),
                "versions": [int(value.versions[:, 0].min()), int(value.versions[:, 1].max())],
            }
            span = value.generated
            self.trace.add_concurrent(pool, worker, Span(span.name, span.started, span.ended, arguments))
        elif task is not None and task.method == "verify":
            arguments = {**task.labels, "samples": len(value)}
            self.trace.add_concurrent(pool, worker, Span("verify", task.started, time.time(), arguments))

    def learned(self, step: int, sums: Sequence[StepSums]) -> None:
        """The ranks have taken a step: their sums, by rank."""
        for rank, of_rank in enumerate(sums):
            for span in of_rank.spans:
                arguments = {"step": step, **span.arguments}
                self.trace.add("learning", rank, Span(span.name, span.started, span.ended, arguments))

    def driver(self, span: Span) -> None:
        """The driver has done a part of its work."""
        self.trace.add("driver", 0, span)
