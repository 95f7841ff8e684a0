"""What a run reports: to its journal on disk at once, from there to MLflow as soon as a server is there.

In: metrics by step, evaluations, the summary. Out: `metrics.jsonl`, `samples/`, `scores/`, `summary.json`, and one MLflow run, resumed with
the training run. Training neither waits for MLflow nor dies of it. A sweep's parent run has no journal: `SweepTracker`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from orchestrator.config.cold_start import SFTConfig
from orchestrator.config.schema import dump_config, flat_settings
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.files import atomically, write_atomically
from orchestrator.storage.journal import Ending, Journal
from orchestrator.tracking.address import tracking_uri
from orchestrator.tracking.delivery import Delivery, RunCard
from orchestrator.tracking.server import Server, without_password

FIRST_ANSWER_S = 5.0
NEW_DATABASE_S = 60.0
"""Seconds that a start waits for a server's first answer; sqlite always answers, but a new database takes its time."""
LAST_EVENTS_S = 30.0
"""Seconds that the end of a run waits for its last events to arrive."""


class Tracker:
    """The record of a training run, gone on with if its folder has a journal. One process may hold it at a time.

    Args:
        say: Gets a line when MLflow goes away, comes back or refuses; also from another thread.
        tags: Of the MLflow run, when it is created.

    Raises:
        ConfigError: The URI is none of an MLflow server, or a server answered and refused, as without the right password. One that does
            not answer is no error. The other methods raise RunError, when the disk is full.
    """

    def __init__(
        self,
        config: RunConfig | SFTConfig,
        say: Callable[[str], None] = print,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.say = config.folder, say
        server = Server(tracking_uri(config.tracking.uri, config.run.dir))
        self.journal = Journal(self.folder)
        if not len(self.journal):
            self.journal.start(config.run.name)
        elif self.journal.status != "RUNNING":
            self.journal.set_status("RUNNING")
        self._delivery = Delivery(server, self.journal, _card(config, tags or {}), say)
        self._delivery.start()
        patience = NEW_DATABASE_S if server.is_sqlite else FIRST_ANSWER_S
        if not self._delivery.settled.wait(patience):
            self._delivery.tell_away(f"no answer within {patience:g} s")
        if self._delivery.refusal:
            raise ConfigError(
                f"tracking: MLflow at {server.shown} refused the run: {self._delivery.refusal}. Look at tracking.uri, tracking.experiment, "
                "MLFLOW_TRACKING_URI, and MLFLOW_TRACKING_USERNAME and _PASSWORD or _TOKEN"
            )

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until the server has been reached once."""
        return self._delivery.run_id

    @property
    def undelivered(self) -> int:
        """Number of events that wait for MLflow."""
        return self._delivery.undelivered

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a training step, once: a step that was logged before a crash and is trained again after it changes nothing."""
        if step > self.journal.last_step:
            self.journal.step(step, values)
            self._delivery.notify()

    def log_evaluation(
        self, name: str, step: int, values: Mapping[str, float], table: Mapping[str, list], figure: Any
    ) -> None:
        """Figures `eval/<name>/...`, a table of sampled solutions (columns by name) and a plot of score distributions, once a step."""
        if (name, step) in self.journal.evaluations:
            return
        samples, scores = (
            f"samples/{name}-{step:06d}.json",
            f"scores/{name}-{step:06d}.png" if figure is not None else None,
        )
        try:
            (self.folder / samples).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / samples, _table_text(table))
            if scores is not None:
                _save_figure(self.folder / scores, figure)
        except OSError as error:
            raise RunError(
                f"{self.folder}: an evaluation cannot be written ({error.strerror}). Is the disk full?"
            ) from error
        self.journal.evaluation(
            name, step, {f"eval/{name}/{key}": value for key, value in values.items()}, samples, scores
        )
        self._delivery.notify()

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json` and log it."""
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        self.journal.summary()
        self._delivery.notify()

    def finish(self, ending: Ending = "FINISHED", timeout_s: float = LAST_EVENTS_S) -> None:
        """Log the run's end, and give the last events `timeout_s` seconds to arrive. After a first call it does nothing."""
        if self.journal.status in get_args(Ending):
            return
        try:
            self.journal.set_status(ending)
        finally:
            self._delivery.close(timeout_s)
        if self.undelivered:
            reason = f" ({self._delivery.refusal})" if self._delivery.refusal else ""
            self.say(
                f"MLflow at {self._delivery.server.shown} has not got everything{reason}: {self.undelivered} events wait in {self.folder}; "
                "the same command sends them"
            )


def deliver_leftovers(
    config: RunConfig | SFTConfig,
    say: Callable[[str], None] = print,
    tags: Mapping[str, str] | None = None,
    finished: bool = False,
) -> int:
    """Send what a run that is over could not deliver; returns the number of events sent. Waits for as long as the server takes them.

    The caller holds the run's folder. Raises ConfigError as `Tracker` does for a URI; a server that is away or refuses is told.

    Args:
        tags: Of the MLflow run, when it is only now created.
        finished: The run came to its end, also where a kill has kept it from writing that down.
    """
    journal = Journal(config.folder)
    if finished and journal.status != "FINISHED":
        journal.summary()
        journal.set_status("FINISHED")
    waiting = len(journal) - journal.sent
    if not waiting:
        return 0
    delivery = Delivery(
        Server(tracking_uri(config.tracking.uri, config.run.dir)), journal, _card(config, tags or {}), say
    )
    say(f"sending {waiting} events of {config.folder} to MLflow at {delivery.server.shown}")
    delivery.start()
    while delivery.is_alive() and not delivery.away and delivery.undelivered:
        delivery.join(0.1)
    delivery.close(timeout_s=0.0 if delivery.away else 5.0)
    if delivery.undelivered:
        say(f"{delivery.undelivered} events still wait{f' ({delivery.refusal})' if delivery.refusal else ''}")
    return waiting - delivery.undelivered


def _card(config: RunConfig | SFTConfig, tags: Mapping[str, str]) -> RunCard:
    """The run as MLflow may show it to others: without the password of its server."""
    uri = config.tracking.uri
    public = config.model_copy(
        update={
            "tracking": config.tracking.model_copy(
                update={"uri": without_password(uri) if uri is not None else None}
            )
        }
    )
    params = {key: str(value) for key, value in flat_settings(public).items()}
    return RunCard(config.tracking.experiment, config.run.name, params, dump_config(public), dict(tags))


def _table_text(table: Mapping[str, list]) -> str:
    """The file that MLflow shows as a table, as pandas' `orient="split"` writes it."""
    return (
        json.dumps({"columns": list(table), "data": [list(row) for row in zip(*table.values(), strict=True)]})
        + "\n"
    )


def _save_figure(path: Path, figure: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as partial:
        figure.savefig(partial, format="png")
