"""What a delivery knows of its server, as a state machine without threads, clocks or requests.

In: the outcome of each attempt. Out: the state, the pause before the next attempt, and what the delivery
has to do.

    outcome       STARTING                     DELIVERING                   UNAVAILABLE
    delivered     DELIVERING                   no change                    DELIVERING, REPORT_RECOVERY
    failed        no change                    no change                    no change
    failed again  UNAVAILABLE, REPORT_OUTAGE   UNAVAILABLE, REPORT_OUTAGE   no change
    unanswered    UNAVAILABLE, REPORT_OUTAGE   no change                    no change
    refused       REFUSED                      REFUSED, REPORT_REFUSAL      REFUSED, REPORT_REFUSAL

The first refusal after a delivery does not change the state if the MLflow run had been found: the run may
have been deleted since, so the delivery looks for it again (FIND_RUN). REFUSED is final.
"""

from enum import StrEnum

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Seconds between two attempts. Each failure doubles the pause."""

FAILURES_TO_REPORT = 2
"""One lost connection or one locked database is not worth a line."""


class DeliveryState(StrEnum):
    """Whether the server takes a run's events."""

    STARTING = "starting"
    """The first attempt has no outcome yet."""
    DELIVERING = "delivering"
    """The server takes events."""
    UNAVAILABLE = "unavailable"
    """The outage has been reported; attempts continue."""
    REFUSED = "refused"
    """The server will not take the events, and nothing more is sent."""


class Reaction(StrEnum):
    """What a delivery has to do after an outcome."""

    REPORT_OUTAGE = "report outage"
    REPORT_RECOVERY = "report recovery"
    REPORT_REFUSAL = "report refusal"
    FIND_RUN = "find run"


class ServerHealth:
    """The state machine.

    Attributes:
        state: The current state.
        refusal: Why the server refused; None unless `state` is REFUSED.
    """

    def __init__(self) -> None:
        self.state = DeliveryState.STARTING
        self.refusal: str | None = None
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._looked_again = False

    def delivered(self) -> Reaction | None:
        """Events arrived, or there were none and the run was found."""
        recovered = self.state is DeliveryState.UNAVAILABLE
        self.state = DeliveryState.DELIVERING
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._looked_again = False
        return Reaction.REPORT_RECOVERY if recovered else None

    def failed(self) -> Reaction | None:
        """An attempt failed, and a later one may succeed."""
        self._failures += 1
        return self._outage() if self._failures >= FAILURES_TO_REPORT else None

    def unanswered(self) -> Reaction | None:
        """The time to wait for the first outcome is over."""
        return self._outage() if self.state is DeliveryState.STARTING else None

    def refused(self, reason: str, run_was_found: bool) -> Reaction | None:
        """The server refused, and will do so again.

        Nobody reports a refusal of the first attempt: the starter raises it.
        """
        if run_was_found and not self._looked_again:
            self._looked_again = True
            return Reaction.FIND_RUN
        first = self.state is DeliveryState.STARTING
        self.state = DeliveryState.REFUSED
        self.refusal = reason
        return None if first else Reaction.REPORT_REFUSAL

    def next_pause_s(self) -> float:
        """Seconds to wait before the next attempt; the pause after that is twice as long."""
        pause = self._pause_s
        self._pause_s = min(2 * pause, LONGEST_PAUSE_S)
        return pause

    def hurry(self) -> None:
        """Begin again with short pauses: little time is left."""
        self._pause_s = FIRST_PAUSE_S

    def _outage(self) -> Reaction | None:
        if self.state is DeliveryState.UNAVAILABLE:
            return None
        self.state = DeliveryState.UNAVAILABLE
        return Reaction.REPORT_OUTAGE
