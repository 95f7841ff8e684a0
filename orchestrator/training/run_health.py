"""The health of a run that goes on: judged again from its journal."""

from orchestrator.algorithm.health import Health
from orchestrator.config.training import RunConfig
from orchestrator.storage.journal import StepEvent, read_events


def health_up_to(step: int, config: RunConfig) -> Health:
    """What the rules say after `step`, from the steps in the run's folder.

    Raises:
        RunError: A line of the journal is no event.
    """
    health = Health(config.health.thresholds, config.health.window)
    events = read_events(config.folder)
    health.replay(event.values for event in events if isinstance(event, StepEvent) and event.step <= step)
    return health
