"""How many failures a run bears. Imports neither torch nor Ray."""

from typing import Annotated

from pydantic import Field

from orchestrator.config.schema import PositiveInt, Section


class FaultsConfig(Section):
    """What a run bears before it ends."""

    max_deaths: PositiveInt = 10
    """Deaths of a pool's workers, or failures of the learner ranks, that a run bears. Work gives them back:
    a training step's worth of groups one death of that pool, a step one failure of the ranks."""
    max_attempts: Annotated[int, Field(ge=2)] = 2
    """Engines or verifiers that may die on a group until it is dropped. Where others were there each time,
    one more death shows which of them it is. The run goes on without its problem, which it keeps in
    `dropped.jsonl` and does not meet again when it resumes."""
