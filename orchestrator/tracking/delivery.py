"""Delivers a run's journal to MLflow, in order and each event once, from a thread that neither a slow nor a dead server lets stall the run.

In: the journal. Out: one MLflow run, whose id is in the folder's `mlflow_run_id`. What cannot be delivered stays in the journal.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from orchestrator.storage.files import write_atomically
from orchestrator.storage.journal import RUN_ID, Event, Journal, saved_run_id
from orchestrator.tracking.server import Server, may_pass

JOURNAL_TAG = "laser.journal"
"""Tag of an MLflow run that says whose journal it shows: a run whose creation was not acknowledged is found by it."""
PARAM_VALUE_LIMIT = 6000
TAG_VALUE_LIMIT = 8000
METRICS_PER_REQUEST = 1000
LONGEST_PAUSE = 60.0
"""Seconds between two attempts, at most."""


@dataclass(frozen=True)
class RunCard:
    """What MLflow is told about a run at its start."""

    experiment: str
    name: str
    params: Mapping[str, str]
    config: str
    """YAML, kept as `config.yaml`."""
    tags: Mapping[str, str]


class Delivery(threading.Thread):
    """Sends what the journal gets. Errors are told through `say`, never raised.

    Attributes:
        run_id: The MLflow run; None until there is one.
        away: Whether the server's absence has been told, and not yet its return.
        refusal: Why the server will not take the events, once it has said so; nothing is sent after that. It is said unless it is the
            answer to the first attempt, which whoever has started the thread waits for.
        settled: Set when the first attempt has led to something: events arrived, the absence was told, or a refusal.
    """

    def __init__(self, server: Server, journal: Journal, card: RunCard, say: Callable[[str], None]) -> None:
        super().__init__(name="mlflow-delivery", daemon=True)
        self.server, self.journal, self.card, self.say = server, journal, card, say
        self.run_id = saved_run_id(journal.folder)
        self.away = False
        self.refusal: str | None = None
        self.settled = threading.Event()
        self._news, self._closing, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._joined = False
        # Whether what follows the cursor may be on the server already: a process was killed, or a request failed, after it had arrived.
        self._unsure = True
        self._failures, self._pause, self._doubted = 0, 1.0, False

    @property
    def undelivered(self) -> int:
        """Number of events that wait."""
        return len(self.journal) - self.journal.sent

    def notify(self) -> None:
        """The journal has got an event."""
        self._news.set()

    def close(self, timeout_s: float) -> None:
        """Deliver the rest, for so long at most, and end."""
        self._closing.set()
        self._news.set()
        self.join(timeout_s)
        self._stopped.set()

    def tell_away(self, reason: str) -> None:
        """Say, once, that the server cannot be reached."""
        if not self.away:
            self.away = True
            self.say(
                f"MLflow at {self.server.shown} cannot be reached ({reason}). The run goes on; its metrics wait in {self.journal.path}"
            )
        self.settled.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._deliver()
            except Exception as error:  # artifact stores raise errors of their own kinds; each is told, and none may end a training
                self._fail(error)
                if self.refusal:
                    return
                continue
            self.settled.set()
            if self._closing.is_set() and not self.undelivered:
                return
            self._news.wait()
            self._news.clear()

    def _fail(self, error: Exception) -> None:
        self._unsure = True
        if not may_pass(error):
            if self._joined and not self._doubted:
                self._joined, self._doubted = (
                    False,
                    True,
                )  # was the run deleted? Then it begins anew, otherwise the refusal stands
                return
            self.refusal = self.server.explain(error)
            if self.settled.is_set() and not self._stopped.is_set():
                self.say(
                    f"MLflow at {self.server.shown} refuses the run: {self.refusal}. Nothing more is sent; the run goes on, its metrics "
                    f"wait in {self.journal.path}"
                )
            self.settled.set()
            return
        self._failures += 1
        if (
            self._failures > 1 and not self._stopped.is_set()
        ):  # one lost connection or one locked database is not worth a line
            self.tell_away(self.server.explain(error))
        if self._closing.is_set():
            self._stopped.wait(self._pause)
        elif self._closing.wait(self._pause):
            self._pause = 0.5  # little time is left
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _deliver(self) -> None:
        """Send all that waits."""
        if not self._joined:
            self._join_run()
        while not self._stopped.is_set() and (batch := self._next_batch()):
            self._send(batch)
            self.journal.mark_sent(self.journal.sent + len(batch))
            self.settled.set()
            self._failures, self._pause, self._doubted = 0, 1.0, False
            if self.away:
                self.away = False
                self.say(
                    f"MLflow at {self.server.shown} answers again; {self.undelivered} more events are on their way"
                )

    def _join_run(self) -> None:
        """Go on with the run of the folder; without one that the server still has, begin a new one with the first event."""
        if not self._is_active(self.run_id):
            experiment = self.server.experiment_id(self.card.experiment)
            journal_id = next(self.journal.events(0))["id"]
            self.journal.mark_sent(0)
            found = self.server.client.search_runs(
                [experiment], f"tags.`{JOURNAL_TAG}` = '{journal_id}'", max_results=1
            )
            if found:
                run = found[0]
            else:
                tags = {**self.card.tags, JOURNAL_TAG: journal_id}
                start = next(self.journal.events(0))["time"]
                run = self.server.client.create_run(
                    experiment, start_time=start, tags=tags, run_name=self.card.name
                )
                self._unsure = False
            write_atomically(self.journal.folder / RUN_ID, run.info.run_id)
            self.run_id = run.info.run_id
        self._joined = True

    def _is_active(self, run_id: str | None) -> bool:
        if run_id is None:
            return False
        try:
            return self.server.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _next_batch(self) -> list[Event]:
        """The next event, or as many steps as one request holds. It begins at the cursor and is no shorter when it is made again."""
        batch: list[Event] = []
        room = METRICS_PER_REQUEST
        for event in self.journal.events(self.journal.sent):
            if event["event"] != "step":
                return batch or [event]
            room -= len(event["values"])
            if batch and room < 0:
                break
            batch.append(event)
        return batch

    def _send(self, batch: Sequence[Event]) -> None:
        """Each kind of event can be sent a second time without a trace of the first, points of curves by looking what is there."""
        client, event = self.server.client, batch[0]
        if event["event"] == "start":
            known = client.get_run(
                self.run_id
            ).data.params  # of an attempt that ended here; they cannot be changed
            params = [
                Param(key, value[:PARAM_VALUE_LIMIT])
                for key, value in self.card.params.items()
                if key not in known
            ]
            client.log_batch(self.run_id, params=params)
            client.log_text(self.run_id, self.card.config, "config.yaml")
        elif event["event"] == "step":
            self._send_points(batch)
        elif event["event"] == "evaluation":
            if event["table"]:
                self._upload(event["table"])
                self._show_tables()
            if event["figure"]:
                self._upload(event["figure"])
            self._send_points(batch)
        elif event["event"] == "summary":
            self._upload("summary.json")
        elif event["status"] == "RUNNING":
            client.update_run(self.run_id, status="RUNNING")
        else:
            client.set_terminated(self.run_id, status=event["status"], end_time=event["time"])

    def _send_points(self, events: Sequence[Event]) -> None:
        points = [
            Metric(key, value, event["time"], event["step"])
            for event in events
            for key, value in event["values"].items()
        ]
        if self._unsure:
            there = {key: self._steps_there(key) for key in {point.key for point in points}}
            points = [point for point in points if point.step not in there[point.key]]
        if points:
            self.server.client.log_batch(self.run_id, metrics=points, synchronous=True)
            self._unsure = False  # events arrive in order: when one was missing, so are those after it

    def _steps_there(self, key: str) -> set[int]:
        return {point.step for point in self.server.client.get_metric_history(self.run_id, key)}

    def _upload(self, path: str) -> None:
        """A file of the run's folder, to the same place among the run's artifacts; a file that was deleted since is left out."""
        file = self.journal.folder / path
        if file.exists():
            self.server.client.log_artifact(
                self.run_id, str(file), str(Path(path).parent) if "/" in path else None
            )

    def _show_tables(self) -> None:
        """Let MLflow's view show the tables up to this event, the newest of them that fit the tag.

        `MlflowClient.log_table` is not used: it appends rows to a table that it finds, and after some 140 tables its tag is cut off.
        """
        events = list(self.journal.events(0))[: self.journal.sent + 1]
        shown = [
            {"path": event["table"], "type": "table"}
            for event in events
            if event["event"] == "evaluation" and event["table"]
        ]
        while len(value := json.dumps(shown)) > TAG_VALUE_LIMIT:
            del shown[0]
        self.server.client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, value)
