"""The record of a training run: in its journal on disk at once, and in MLflow as soon as a server answers.

In: metrics of steps, evaluations, the summary. Out: `metrics.jsonl`, `samples/`, `scores/`, `summary.json`,
and one MLflow run, which a resumed training continues. Training neither waits for MLflow nor fails with it.
The MLflow run of a sweep or of an evaluation has no journal: see `parent_run.py`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from orchestrator.config.cold_start import SFTConfig
from orchestrator.config.paths import SET_NAME_BYTES, short_name
from orchestrator.config.schema import dump_config, public_settings
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.files import atomically, write_atomically
from orchestrator.storage.journal import Ending, Journal
from orchestrator.terminal import say_line
from orchestrator.tracking.address import tracking_uri
from orchestrator.tracking.delivery import Delivery
from orchestrator.tracking.health import DeliveryState
from orchestrator.tracking.names import legal_name
from orchestrator.tracking.run_writer import RunCard
from orchestrator.tracking.server import Server

FIRST_ANSWER_S = 5.0
NEW_DATABASE_S = 60.0
"""Seconds that a start waits for a server's first answer.

A sqlite database always answers, but a new one takes its time.
"""
LAST_EVENTS_S = 30.0
"""Seconds that the end of a run waits for the delivery of its last events."""


class Tracker:
    """The record of a training run.

    It continues the folder's journal if there is one. One process may hold it at a time.

    Args:
        say: Receives a line when MLflow becomes unavailable, recovers or refuses; another thread may call it.
        tags: Of the MLflow run, when it is created.

    Attributes:
        server: The MLflow server.
        journal: The run's journal.

    Raises:
        ConfigError: No MLflow server can have the URI, or the server refused, such as for a missing
            password. A server that does not answer is no error.
        RunError: From any method: the journal or a file cannot be written, because the disk is full.
    """

    def __init__(
        self,
        config: RunConfig | SFTConfig,
        say: Callable[[str], None] = say_line,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = config.folder
        self.say = say
        self.server = Server(tracking_uri(config.tracking.uri, config.run.dir))
        self.journal = Journal(self.folder)
        if not len(self.journal):
            self.journal.start(config.run.name)
        elif self.journal.status != "RUNNING":
            self.journal.set_status("RUNNING")
        self._delivery = Delivery(self.server, self.journal, _card(config, tags or {}), say)
        self._delivery.start()
        patience = NEW_DATABASE_S if self.server.is_sqlite else FIRST_ANSWER_S
        if self._delivery.first_outcome(patience) is DeliveryState.REFUSED:
            raise ConfigError(
                f"tracking: MLflow at {self.server.shown} refused the run: {self._delivery.refusal}. Look at "
                "tracking.uri, tracking.experiment, MLFLOW_TRACKING_URI, and MLFLOW_TRACKING_USERNAME and "
                "_PASSWORD or _TOKEN"
            )

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until the server has created it."""
        return self._delivery.run_id

    @property
    def delivery_state(self) -> DeliveryState:
        """Whether the server takes events."""
        return self._delivery.state

    @property
    def undelivered(self) -> int:
        """Number of events that wait for MLflow."""
        return self._delivery.undelivered

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a training step.

        A step that was logged before a crash and is trained again changes nothing.
        """
        if step > self.journal.last_step:
            self.journal.step(step, values)
            self._delivery.notify()

    def log_evaluation(
        self, name: str, step: int, values: Mapping[str, float], table: Mapping[str, list], figure: Any
    ) -> None:
        """Log an evaluation of the set `name`; a second one of the same step changes nothing.

        Args:
            values: Figures, which get the names `eval/<name>/...`.
            table: Sampled solutions: columns of equal length by name.
            figure: A matplotlib figure of the score distributions, or None.
        """
        if (name, step) in self.journal.evaluations:
            return
        stem = short_name(legal_name(name), SET_NAME_BYTES)  # MLflow's servers have the files at addresses
        samples = f"samples/{stem}-{step:06d}.json"
        scores = f"scores/{stem}-{step:06d}.png" if figure is not None else None
        try:
            (self.folder / samples).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / samples, _table_text(table))
            if scores is not None:
                _save_figure(self.folder / scores, figure)
        except OSError as error:
            raise RunError(
                f"{self.folder}: an evaluation cannot be written ({error.strerror}). Is the disk full?"
            ) from error
        figures = {f"eval/{name}/{key}": value for key, value in values.items()}
        self.journal.evaluation(name, step, figures, samples, scores)
        self._delivery.notify()

    def log_note(self, step: int, text: str) -> None:
        """Log a warning after step `step`. MLflow shows the warnings in the run's description."""
        self.journal.note(step, text)
        self._delivery.notify()

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json` and log it."""
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        self.journal.summary()
        self._delivery.notify()

    def finish(self, ending: Ending = "FINISHED", timeout_s: float = LAST_EVENTS_S) -> None:
        """Log the run's end, and give the last events `timeout_s` seconds to arrive.

        A second call does nothing.
        """
        if self.journal.status in get_args(Ending):
            return
        try:
            self.journal.set_status(ending)
        finally:
            self.close(timeout_s)
        if self.undelivered:
            reason = f" ({self._delivery.refusal})" if self._delivery.refusal else ""
            self.say(
                f"MLflow at {self.server.shown} does not have all events{reason}: {self.undelivered} events "
                f"wait in {self.folder}. Run the same command again to send them"
            )

    def close(self, timeout_s: float) -> None:
        """Deliver the events that wait for at most `timeout_s` seconds, then stop.

        The run's status does not change.
        """
        self._delivery.close(timeout_s)


def deliver_leftovers(
    config: RunConfig | SFTConfig,
    say: Callable[[str], None] = say_line,
    tags: Mapping[str, str] | None = None,
    finished: bool = False,
) -> int:
    """Send the events that a run could not deliver before it ended. Waits as long as the server takes events.

    The caller holds the run's folder. `say` reports a server that is unavailable or refuses.

    Args:
        tags: Of the MLflow run, if it is created only now.
        finished: The run reached its end, even if a kill kept it from logging that.

    Returns:
        The number of events sent.

    Raises:
        ConfigError: No MLflow server can have the URI.
    """
    journal = Journal(config.folder)
    if finished and journal.status != "FINISHED":
        journal.summary()
        journal.set_status("FINISHED")
    waiting = len(journal) - journal.sent
    if not waiting:
        return 0
    server = Server(tracking_uri(config.tracking.uri, config.run.dir))
    delivery = Delivery(server, journal, _card(config, tags or {}), say)
    say(f"sending {waiting} events of {config.folder} to MLflow at {server.shown}")
    delivery.start()
    while delivery.is_alive() and delivery.state is not DeliveryState.UNAVAILABLE and delivery.undelivered:
        delivery.join(0.1)
    delivery.close(timeout_s=0.0 if delivery.state is DeliveryState.UNAVAILABLE else 5.0)
    if delivery.undelivered:
        say(f"{delivery.undelivered} events still wait{f' ({delivery.refusal})' if delivery.refusal else ''}")
    return waiting - delivery.undelivered


def _card(config: RunConfig | SFTConfig, tags: Mapping[str, str]) -> RunCard:
    """The run as MLflow may show it to others."""
    params = {key: str(value) for key, value in public_settings(config).items()}
    return RunCard(config.tracking.experiment, config.run.name, params, dump_config(config), dict(tags))


def _table_text(table: Mapping[str, list]) -> str:
    """The file that MLflow shows as a table; pandas writes it with `orient="split"`."""
    rows = [list(row) for row in zip(*table.values(), strict=True)]
    return json.dumps({"columns": list(table), "data": rows}) + "\n"


def _save_figure(path: Path, figure: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as partial:
        figure.savefig(partial, format="png")
