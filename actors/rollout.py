"""Rollout pool: a vLLM engine in a Ray actor that samples groups of solutions and scores them in the same generation.

In: `GroupRequest`s and, between two decode steps, weights with a version. Out, as soon as the last sample of a group ends: its
packed `Trajectories` and decoded texts (they stay in the object store) and a `GroupSummary` (for the driver). A service takes single
samples instead, as they are decoded (`Engine.sample`), and the score of given tokens (`Engine.score`).
"""

from typing import TYPE_CHECKING

from actors.engine import Engine
from orchestrator.messages.requests import EngineSettings, GroupRequest
from orchestrator.messages.trajectories import GroupSummary, Trajectories

if TYPE_CHECKING:
    pass


class RolloutWorker:
    """The engine as a Ray actor."""

    def __init__(self, settings: EngineSettings) -> None:
        self.engine = Engine(settings)

    async def generate(self, request: GroupRequest) -> tuple[Trajectories, list[str], GroupSummary]:
        return await self.engine.generate(request)

    async def load_weights(self, version: int, chunk_refs: list) -> int:
        """`chunk_refs` are ObjectRefs; each chunk is mapped from the object store only when its turn to be loaded comes."""
        import ray

        return await self.engine.load_weights(version, (ray.get(ref) for ref in chunk_refs))

    async def sleep(self) -> None:
        await self.engine.sleep()

    async def wake(self, version: int, chunk_refs: list) -> int:
        """As `load_weights`, for an engine that was asleep."""
        import ray

        return await self.engine.wake(version, (ray.get(ref) for ref in chunk_refs))

    async def ping(self) -> int:
        """The version of the weights in place; -1 before the first `load_weights`."""
        return self.engine.version
