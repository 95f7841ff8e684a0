"""How many failures a run bears. Imports neither torch nor Ray."""

from orchestrator.config.schema import PositiveInt, Section


class FaultsConfig(Section):
    """What a run bears before it ends."""

    max_deaths: PositiveInt = 10
    """Deaths of a pool's workers, or failures of the learner ranks, that a run bears. Work gives them back:
    a training step's worth of groups one death of that pool, a step one failure of the ranks."""
