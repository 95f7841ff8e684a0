"""The states of a delivery, by outcomes alone."""

import pytest

from orchestrator.tracking.health import LONGEST_PAUSE_S, DeliveryState, Reaction, ServerHealth

DELIVERED, FAILED, UNANSWERED, REFUSED, REFUSED_RUN = (
    "delivered",
    "failed",
    "unanswered",
    "refused",
    "refused run",
)


def after(*outcomes):
    """The machine, and its reaction to each outcome. `REFUSED_RUN`: a refusal after the run was found."""
    health = ServerHealth()
    act = {
        DELIVERED: health.delivered,
        FAILED: health.failed,
        UNANSWERED: health.unanswered,
        REFUSED: lambda: health.refused("no", run_was_found=False),
        REFUSED_RUN: lambda: health.refused("no", run_was_found=True),
    }
    return health, [act[outcome]() for outcome in outcomes]


@pytest.mark.parametrize(
    ("outcomes", "state", "last_reaction"),
    [
        ((DELIVERED,), DeliveryState.DELIVERING, None),
        ((FAILED,), DeliveryState.STARTING, None),
        ((FAILED, DELIVERED), DeliveryState.DELIVERING, None),
        ((FAILED, FAILED), DeliveryState.UNAVAILABLE, Reaction.REPORT_OUTAGE),
        ((FAILED, FAILED, FAILED), DeliveryState.UNAVAILABLE, None),
        ((UNANSWERED,), DeliveryState.UNAVAILABLE, Reaction.REPORT_OUTAGE),
        ((UNANSWERED, FAILED, FAILED), DeliveryState.UNAVAILABLE, None),
        ((DELIVERED, UNANSWERED), DeliveryState.DELIVERING, None),
        ((DELIVERED, FAILED), DeliveryState.DELIVERING, None),
        ((DELIVERED, FAILED, DELIVERED, FAILED), DeliveryState.DELIVERING, None),
        ((DELIVERED, FAILED, FAILED), DeliveryState.UNAVAILABLE, Reaction.REPORT_OUTAGE),
        ((FAILED, FAILED, DELIVERED), DeliveryState.DELIVERING, Reaction.REPORT_RECOVERY),
        ((UNANSWERED, DELIVERED), DeliveryState.DELIVERING, Reaction.REPORT_RECOVERY),
        ((UNANSWERED, DELIVERED, DELIVERED), DeliveryState.DELIVERING, None),
        ((REFUSED,), DeliveryState.REFUSED, None),
        ((FAILED, REFUSED), DeliveryState.REFUSED, None),
        ((UNANSWERED, REFUSED), DeliveryState.REFUSED, Reaction.REPORT_REFUSAL),
        ((REFUSED, UNANSWERED), DeliveryState.REFUSED, None),
        ((REFUSED_RUN,), DeliveryState.STARTING, Reaction.FIND_RUN),
        ((DELIVERED, REFUSED_RUN), DeliveryState.DELIVERING, Reaction.FIND_RUN),
        ((DELIVERED, REFUSED_RUN, REFUSED_RUN), DeliveryState.REFUSED, Reaction.REPORT_REFUSAL),
        ((DELIVERED, REFUSED_RUN, FAILED, REFUSED), DeliveryState.REFUSED, Reaction.REPORT_REFUSAL),
        ((DELIVERED, REFUSED_RUN, DELIVERED, REFUSED_RUN), DeliveryState.DELIVERING, Reaction.FIND_RUN),
        ((UNANSWERED, REFUSED_RUN, DELIVERED), DeliveryState.DELIVERING, Reaction.REPORT_RECOVERY),
    ],
)
def test_each_outcome_leads_to_one_state_and_is_reported_once(outcomes, state, last_reaction):
    health, reactions = after(*outcomes)
    assert (health.state, reactions[-1]) == (state, last_reaction)
    assert health.refusal == ("no" if state is DeliveryState.REFUSED else None)


def test_pauses_double_up_to_the_longest_until_an_event_arrives():
    health, _ = after(FAILED)
    assert [health.next_pause_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    health.delivered()
    assert [health.next_pause_s() for _ in range(2)] == [1, 2]
    health.hurry()
    assert health.next_pause_s() == 1
