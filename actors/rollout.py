"""An engine of the rollout pool: `actors.engine.Engine` as a Ray actor that loads weights by ObjectRef."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from actors.engine import Engine
from actors.progress import report_progress
from orchestrator.cluster.waits import fetched
from orchestrator.messages.requests import EngineSettings, GroupRequest
from orchestrator.messages.spans import Span
from orchestrator.messages.trajectories import GroupSummary, Trajectories


class RolloutWorker:
    """The engine as a Ray actor."""

    def __init__(self, settings: EngineSettings) -> None:
        report_progress()
        self.engine = Engine(settings)

    async def generate(self, request: GroupRequest) -> tuple[Trajectories, list[str], GroupSummary]:
        """Sample a group; trajectories and texts stay in the object store, the summary is for the driver."""
        started = time.time()
        trajectories, texts, summary = await self.engine.generate(request)
        return trajectories, texts, replace(summary, generated=Span("generate", started, time.time()))

    async def score(self, token_ids: Sequence[int]) -> float:
        """Natural log pi(z_c | token_ids), which end in an EOS token."""
        return await self.engine.score(token_ids)

    async def load_weights(self, version: int, chunk_refs: Sequence[Any]) -> Span:
        """Replace the weights; returns the time in which the engine could not decode.

        Args:
            chunk_refs: ObjectRefs to `WeightChunk`s. Each is mapped from the object store just before it is
                loaded.
        """
        return await self.engine.load_weights(version, _fetched(chunk_refs))

    async def sleep(self) -> None:
        """Drop running requests and free the GPU's memory."""
        await self.engine.sleep()

    async def wake(self, version: int, chunk_refs: Sequence[Any]) -> Span:
        """As `load_weights`, for an engine that was asleep."""
        return await self.engine.wake(version, _fetched(chunk_refs))

    async def first_token_age(self) -> float | None:
        """Seconds since the engine sampled its first token; None before."""
        first = self.engine.first_token_at
        return None if first is None else time.monotonic() - first

    async def ping(self) -> int:
        """The version of the loaded weights; -1 before the first `load_weights`."""
        return self.engine.version


def _fetched(chunk_refs: Sequence[Any]) -> Iterator[Any]:
    return (fetched(ref, "a chunk of weights") for ref in chunk_refs)
