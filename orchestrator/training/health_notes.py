"""Health rules that break or are kept again: said once and kept in the journal; they may end the run."""

from orchestrator.errors import RunError
from orchestrator.training.session import Session


def note_health(session: Session) -> None:
    """Note what has changed with the last finished step.

    Raises:
        RunError: A rule is broken and `health.stop` is set; a checkpoint is written.
    """
    broken = session.health.broken
    for rule, reason in broken.items():
        if rule not in session.health.said:
            session.note(f"step {session.step}: unhealthy: {reason}. {rule.advice.capitalize()}")
    for rule in session.health.said - broken.keys():
        session.say(f"step {session.step}: {rule.metric} is healthy again")
    session.health.said = set(broken)
    if broken and session.config.health.stop:
        session.save()
        raise RunError(
            f"step {session.step}: {'; '.join(broken.values())}. health.stop ends the run here, after a "
            "checkpoint: go on with health.stop=false or another threshold, or train again from an earlier "
            "checkpoint"
        )
