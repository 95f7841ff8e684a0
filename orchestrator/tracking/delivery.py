"""Delivers a run's journal to MLflow, in order and each event once.

In: the journal. Out: one MLflow run, and lines about outages. A thread does the work, so that neither a
slow nor an unavailable server delays the training. Events that cannot be delivered stay in the journal.
"""

import threading
from collections.abc import Callable
from enum import StrEnum

from orchestrator.storage.journal import Journal
from orchestrator.tracking.health import DeliveryState, Reaction, ServerHealth
from orchestrator.tracking.run_writer import RunCard, RunWriter
from orchestrator.tracking.server import Server, may_pass


class DeliveryPhase(StrEnum):
    """What the owner of a delivery wants of it."""

    OPEN = "open"
    """Send each event when the journal gets it."""
    CLOSING = "closing"
    """Send the remaining events, then end."""
    STOPPED = "stopped"
    """End after the current request."""


class Delivery(threading.Thread):
    """Sends the events of `journal` to `server`.

    It reports errors through `say` and never raises them: no failure of MLflow may end a training.

    Attributes:
        phase: What the owner wants.
        health: What is known of the server.
    """

    def __init__(self, server: Server, journal: Journal, card: RunCard, say: Callable[[str], None]) -> None:
        super().__init__(name="mlflow-delivery", daemon=True)
        self.server = server
        self.journal = journal
        self.say = say
        self.phase = DeliveryPhase.OPEN
        self.health = ServerHealth()
        self._writer = RunWriter(server, journal, card)
        # Guards `phase` and `health`, and wakes the threads that wait for a change of them or for events.
        self._changed = threading.Condition()

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until it exists."""
        return self._writer.run_id

    @property
    def state(self) -> DeliveryState:
        return self.health.state

    @property
    def refusal(self) -> str | None:
        """Why the server will not take the events; None unless it refused."""
        return self.health.refusal

    @property
    def undelivered(self) -> int:
        """Number of events that wait."""
        return len(self.journal) - self.journal.sent

    def notify(self) -> None:
        """The journal has a new event: wake the thread."""
        with self._changed:
            self._changed.notify_all()

    def first_outcome(self, timeout_s: float) -> DeliveryState:
        """Wait until the first attempt has an outcome.

        If there is none after `timeout_s`, report the server as unavailable.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.state is not DeliveryState.STARTING, timeout_s)
            self._update(self.health.unanswered, f"no answer within {timeout_s:g} s")
            return self.state

    def close(self, timeout_s: float) -> None:
        """Deliver the remaining events for at most `timeout_s` seconds, then end."""
        self._enter(DeliveryPhase.CLOSING)
        self.join(timeout_s)
        self._enter(DeliveryPhase.STOPPED)

    def run(self) -> None:
        while self.phase is not DeliveryPhase.STOPPED and self.state is not DeliveryState.REFUSED:
            try:
                self._deliver()
            except Exception as error:  # artifact stores have their own kinds of errors
                self._handle(error)
                continue
            if not self._wait_for_events():
                return

    def _deliver(self) -> None:
        """Send all events that wait."""
        self._writer.attach()
        while self.phase is not DeliveryPhase.STOPPED and (batch := self._writer.next_batch()):
            self._writer.send(batch)
            self.journal.mark_sent(self.journal.sent + len(batch))
            self._update(self.health.delivered)
        self._update(self.health.delivered)

    def _handle(self, error: Exception) -> None:
        """Record a failed attempt, and wait before the next one."""
        self._writer.expect_repeats()
        reason = self.server.explain(error)
        if may_pass(error):
            self._update(self.health.failed, reason)
            self._pause()
        else:
            self._update(lambda: self.health.refused(reason, self._writer.attached), reason)

    def _update(self, outcome: Callable[[], Reaction | None], reason: str = "") -> None:
        """Record an outcome and do what it asks for.

        Lines are said before other threads see the new state.
        """
        with self._changed:
            match outcome():
                case Reaction.REPORT_OUTAGE:
                    self._report(
                        f"cannot be reached ({reason}). The run continues; its metrics wait in "
                        f"{self.journal.path}"
                    )
                case Reaction.REPORT_RECOVERY:
                    self._report(f"answers again; {self.undelivered} more events are being sent")
                case Reaction.REPORT_REFUSAL:
                    self._report(
                        f"refuses the run: {reason}. Nothing more is sent; the run continues, and its "
                        f"metrics wait in {self.journal.path}"
                    )
                case Reaction.FIND_RUN:
                    self._writer.detach()
            self._changed.notify_all()

    def _report(self, text: str) -> None:
        if self.phase is not DeliveryPhase.STOPPED:
            self.say(f"MLflow at {self.server.shown} {text}")

    def _enter(self, phase: DeliveryPhase) -> None:
        with self._changed:
            self.phase = phase
            self._changed.notify_all()

    def _pause(self) -> None:
        """Wait for the next attempt. A pause ends early when the owner closes the delivery."""
        with self._changed:
            phase = self.phase
            if self._changed.wait_for(lambda: self.phase is not phase, self.health.next_pause_s()):
                self.health.hurry()

    def _wait_for_events(self) -> bool:
        """Whether there are any; False when the delivery has to end."""
        with self._changed:
            self._changed.wait_for(lambda: self.undelivered or self.phase is not DeliveryPhase.OPEN)
            return self.undelivered > 0
