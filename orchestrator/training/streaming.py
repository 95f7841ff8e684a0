"""Gives the ranks rounds of a step's first mini-batch while the engines generate the rest of it.

In: a collection whose groups land one after another. Out: what the ranks have learned before the last one.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32
from ray import ObjectRef

from orchestrator.cluster.machine import GIB, main_memory
from orchestrator.config.training import RunConfig
from orchestrator.pools.collect import Batch, Collection, to_batch
from orchestrator.pools.memory import DTYPE_BYTES, streamed_copies
from orchestrator.pools.ranks import RankCall, values_of
from orchestrator.pools.task import Task
from orchestrator.pools.training import Pools
from orchestrator.training.stream_plan import StreamPlan
from orchestrator.training.train_batch import StreamedSamples

EstimateGroup = Callable[[Batch], tuple[Float32[np.ndarray, "samples"], Float32[np.ndarray, "samples"]]]
"""Advantages and reference log-probs of some groups' samples; groups do not depend on one another."""


def lack_of_memory(config: RunConfig, pools: Pools) -> str | None:
    """Why `learning.stream` cannot be had in this session, in words; None where its memory is there.

    On GPUs the ranks reserve it. On CPUs this node's memory decides.
    """
    copies = streamed_copies(config)
    needed = 4 * copies * pools.published_bytes // DTYPE_BYTES[config.engine_dtype]
    if config.learning.gpus_per_rank:
        has_room = all(pools.on_all_ranks("reserve", copies))
    else:
        has_room = needed <= main_memory().for_run
    return (
        None
        if has_room
        else f"learning.stream is off in this session: it needs {needed / GIB:.1f} GiB more in all ranks "
        "together than is free"
    )


class RankRounds:
    """The rounds of one step, which `run_until` runs beside the pools.

    The ranks have the weights that the step learns from, and are idle but for one round at a time.

    Args:
        plan: Of the step.
        collection: The step's groups; some may have landed already.
        estimate: As for the whole batch.
    """

    def __init__(
        self, plan: StreamPlan, pools: Pools, collection: Collection, estimate: EstimateGroup
    ) -> None:
        self.plan = plan
        self.pools = pools
        self.collection = collection
        self.estimate = estimate
        self.calls: list[ObjectRef] = []
        """Of the newest round, by rank."""
        self.missing: set[ObjectRef] = set()
        """Those that are not there."""
        for number in list(collection.checked):
            self._land(number)
        collection.on_checked = self._land

    @property
    def outstanding(self) -> bool:
        """Whether the ranks learn a round."""
        return bool(self.missing)

    def watched(self) -> list[ObjectRef]:
        """Give the ranks their next round if they are idle and there is one."""
        if not self.missing and (part := self.plan.next_round()):
            self.calls = [rank.stream.remote(part) for rank in self.pools.learners]
            self.missing = set(self.calls)
        return list(self.missing)

    def settle(self, ref: ObjectRef) -> tuple[Task, None] | None:
        """A rank has learned its part of the round.

        Raises:
            ray.exceptions.RayActorError: A rank died.
            ray.exceptions.RayTaskError: A rank failed, and all of them live.
        """
        values_of(self.pools.learners, [ref])
        self.missing.discard(ref)
        return None

    def check_alive(self) -> None:
        """End ranks that hang; see `RankCall`."""
        call = RankCall(self.pools.learners, "stream", self.calls, self.pools.rank_watch)
        call.check_alive()

    def complete(self) -> StreamedSamples:
        """What the rounds have covered, once the last group has landed.

        It waits for the round that the ranks learn now, and for those that complete its samples. Raises as
        `settle`.
        """
        if self.missing:
            self.pools.wait_for_ranks("stream", self.calls)
        self.missing.clear()
        for part in self.plan.remaining_rounds():
            self.pools.on_all_ranks("stream", part)
        return self.plan.streamed

    def _land(self, number: int) -> None:
        """A group is checked: its samples wait for the ranks."""
        group = to_batch([self.collection.checked[number]])
        self.plan.add(number, group, *self.estimate(group))
