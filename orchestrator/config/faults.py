"""How many failures a run bears. Imports neither torch nor Ray."""

from typing import Annotated

from pydantic import Field

from orchestrator.config.schema import PositiveFloat, PositiveInt, Section


class FaultsConfig(Section):
    """What a run bears before it ends."""

    max_deaths: PositiveInt = 10
    """Deaths of a pool's workers, or failures of the learner ranks, that a run bears. Work gives them back:
    a training step's worth of groups one death of that pool, a step one failure of the ranks."""
    max_attempts: Annotated[int, Field(ge=2)] = 2
    """Engines or verifiers that may die on a group until it is dropped. Where others were there each time,
    one more death shows which of them it is. The run goes on without its problem, which it keeps in
    `dropped.jsonl` and does not meet again when it resumes."""
    deadline_s: PositiveFloat = 120.0
    """Seconds without progress (decode steps, micro-batches, checks, chunks of weights) after which an
    engine, a verifier or a rank hangs: its process is ended and replaced as if it had died. It is more where
    work is slow: 20 times the longest time that a piece of the same work has taken."""
    first_deadline_s: PositiveFloat = 1800.0
    """The same while fewer than three pieces of such work are measured."""
