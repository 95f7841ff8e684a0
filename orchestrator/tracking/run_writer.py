"""Writes a journal's events into one MLflow run, so that an event which is sent twice shows once.

In: a journal. Out: the MLflow run, whose id is in the folder's `mlflow_run_id`. All methods raise the
errors of MLflow and of its artifact stores.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE

from orchestrator.storage.files import write_atomically
from orchestrator.storage.journal import (
    RUN_ID,
    EvaluationEvent,
    Event,
    Journal,
    NoteEvent,
    StartEvent,
    StatusEvent,
    StepEvent,
    SummaryEvent,
    saved_run_id,
)
from orchestrator.tracking.names import (
    in_batches,
    legal_name,
    legal_params,
    legal_tags,
    legal_title,
    true_name_tags,
)
from orchestrator.tracking.server import Server

JOURNAL_TAG = "laser.journal"
"""Tag of an MLflow run with the id of its journal.

It identifies a run whose creation the server did not confirm.
"""
HEALTH = "health/"
"""Metrics with this beginning say whether a health rule is broken."""
HEALTH_TAG = "laser.health"
TAG_VALUE_LIMIT = 8000
"""Characters that MLflow stores of a tag's value."""
METRICS_PER_REQUEST = 1000
"""The most points of curves in one request to MLflow."""


@dataclass(frozen=True)
class RunCard:
    """What an MLflow run is created with."""

    experiment: str
    name: str
    params: Mapping[str, str]
    config: str
    """YAML, stored as `config.yaml`."""
    tags: Mapping[str, str]


class RunWriter:
    """The MLflow run of `journal`, to which one thread writes.

    Attributes:
        run_id: The MLflow run; None until it exists.
        attached: Whether this server has confirmed that it has the run.
    """

    def __init__(self, server: Server, journal: Journal, card: RunCard) -> None:
        self.server = server
        self.journal = journal
        self.card = card
        self.run_id = saved_run_id(journal.folder)
        self.attached = False
        # Whether the server may have points after the journal's cursor: a process was killed, or a request
        # failed, after they had arrived.
        self._may_repeat = True
        self._health = ""  # what the run's tag says
        self._named: set[str] = set()  # metrics whose true names the run has as tags

    def attach(self) -> None:
        """Find the folder's run on the server.

        If there is none, create one, which begins with the first event.
        """
        if self.attached:
            return
        if not self._is_active(self.run_id):
            self.run_id = self._find_or_create()
            write_atomically(self.journal.folder / RUN_ID, self.run_id)
        self.attached = True

    def detach(self) -> None:
        """Look for the run again at the next `attach`: it may have been deleted."""
        self.attached = False

    def expect_repeats(self) -> None:
        """A request failed.

        Its points may have arrived all the same, so ask the server before sending points again.
        """
        self._may_repeat = True

    def next_batch(self) -> list[Event]:
        """The next event, or as many steps as one request holds; empty when all events are sent.

        A batch that is made again begins at the same event and is at least as long.
        """
        batch: list[Event] = []
        room = METRICS_PER_REQUEST
        for event in self.journal.events(self.journal.sent):
            if not isinstance(event, StepEvent):
                return batch or [event]
            room -= len(event.values)
            if batch and room < 0:
                break
            batch.append(event)
        return batch

    def send(self, batch: Sequence[Event]) -> None:
        """Write a batch of `next_batch`. To send it a second time changes nothing."""
        client = self.server.client
        match batch[0]:
            case StartEvent():
                self._send_settings()
            case StepEvent():
                self._send_points([event for event in batch if isinstance(event, StepEvent)])
            case EvaluationEvent() as event:
                if event.table:
                    self._upload(event.table)
                    self._show_tables()
                if event.figure:
                    self._upload(event.figure)
                self._send_points([event])
            case NoteEvent():
                self._show_notes()
            case SummaryEvent():
                self._upload("summary.json")
            case StatusEvent(status="RUNNING"):
                client.update_run(self.run_id, status="RUNNING")
            case StatusEvent() as event:
                client.set_terminated(self.run_id, status=event.status, end_time=event.time)

    def _find_or_create(self) -> str:
        client = self.server.client
        experiment = self.server.experiment_id(self.card.experiment)
        opening = self.journal.opening
        self.journal.mark_sent(0)
        found = client.search_runs([experiment], f"tags.`{JOURNAL_TAG}` = '{opening.id}'", max_results=1)
        if found:
            return found[0].info.run_id
        tags = legal_tags({**self.card.tags, JOURNAL_TAG: opening.id})
        name = legal_title(self.card.name)
        run = client.create_run(experiment, start_time=opening.time, tags=tags, run_name=name)
        self._may_repeat = False
        self._named.clear()
        self._health = ""
        return run.info.run_id

    def _is_active(self, run_id: str | None) -> bool:
        if run_id is None:
            return False
        try:
            return self.server.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _send_settings(self) -> None:
        # An interrupted attempt may have sent some of them already. MLflow refuses to change a parameter.
        known = self.server.client.get_run(self.run_id).data.params
        params = [param for param in legal_params(self.card.params) if param.key not in known]
        for batch in in_batches(params):
            self.server.client.log_batch(self.run_id, params=batch)
        self.server.client.log_batch(self.run_id, tags=true_name_tags(self.card.params))
        self.server.client.log_text(self.run_id, self.card.config, "config.yaml")

    def _send_points(self, events: Sequence[StepEvent | EvaluationEvent]) -> None:
        points = [
            Metric(legal_name(key), value, event.time, event.step)
            for event in events
            for key, value in event.values.items()
        ]
        self._keep_true_names({key for event in events for key in event.values})
        self._show_health(events[-1].values)
        if self._may_repeat:
            steps = {key: self._steps_on_server(key) for key in {point.key for point in points}}
            points = [point for point in points if point.step not in steps[point.key]]
        if points:
            self.server.client.log_batch(self.run_id, metrics=points, synchronous=True)
            # Events arrive in order: if a point was missing, all later ones are missing too.
            self._may_repeat = False

    def _show_health(self, values: Mapping[str, float]) -> None:
        """Name the broken health rules in a tag, where that has changed."""
        rules = {key.removeprefix(HEALTH): value for key, value in values.items() if key.startswith(HEALTH)}
        broken = [name for name, value in rules.items() if value]
        text = f"broken: {', '.join(broken)}" if broken else "healthy"
        if rules and text != self._health:
            self.server.client.set_tag(self.run_id, HEALTH_TAG, text)
            self._health = text

    def _keep_true_names(self, metrics: set[str]) -> None:
        if tags := true_name_tags(sorted(metrics - self._named)):
            self.server.client.log_batch(self.run_id, tags=tags)
        self._named |= metrics

    def _steps_on_server(self, key: str) -> set[int]:
        return {point.step for point in self.server.client.get_metric_history(self.run_id, key)}

    def _upload(self, path: str) -> None:
        """Store a file of the run's folder at the same path among the run's artifacts.

        A deleted file is left out.
        """
        file = self.journal.folder / path
        if file.exists():
            parent = str(Path(path).parent) if "/" in path else None
            self.server.client.log_artifact(self.run_id, str(file), parent)

    def _show_notes(self) -> None:
        """Show the warnings up to this event as the run's description, the newest ones that fit."""
        events = list(self.journal.events(0))[: self.journal.sent + 1]
        lines = [f"- after step {each.step}: {each.text}" for each in events if isinstance(each, NoteEvent)]
        self.server.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, "\n".join(lines)[-TAG_VALUE_LIMIT:])

    def _show_tables(self) -> None:
        """List the tables up to this event for MLflow's view: the newest ones, as many as the tag holds.

        `MlflowClient.log_table` is not used: it appends rows to an existing table, and cuts its tag off
        after some 140 tables.
        """
        events = list(self.journal.events(0))[: self.journal.sent + 1]
        shown = [
            {"path": event.table, "type": "table"}
            for event in events
            if isinstance(event, EvaluationEvent) and event.table
        ]
        while len(value := json.dumps(shown)) > TAG_VALUE_LIMIT:
            del shown[0]
        self.server.client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, value)
