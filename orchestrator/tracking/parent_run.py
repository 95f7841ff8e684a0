"""The MLflow run of a sweep, to which the runs of its trials belong, or of an evaluation.

In: metrics, tags, files. Out: one MLflow run. It has no journal: all that it shows is in the folder's
`results.json` too.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from orchestrator.errors import ConfigError
from orchestrator.storage.files import write_atomically
from orchestrator.storage.journal import RUN_ID, saved_run_id
from orchestrator.terminal import say_line
from orchestrator.tracking.names import (
    in_batches,
    legal_name,
    legal_params,
    legal_tags,
    legal_title,
    true_name_tags,
)
from orchestrator.tracking.server import Server, may_pass

ATTEMPTS = 4
"""Of one request, with pauses of 1, 2 and 4 s."""


class ParentRun:
    """The MLflow run of a sweep or of an evaluation. The server must answer when it starts.

    Args:
        uri: The MLflow server.
        folder: Of the sweep or evaluation. If `mlflow_run_id` in it names an active run, that run is resumed.
        params: Of the MLflow run, when it is created.
        tags: Of the MLflow run, when it is created.
        say: Receives a line for each request that failed after the start.
        kind: `sweep` or `evaluation`, for messages.

    Attributes:
        server: The MLflow server.
        run_id: The MLflow run.

    Raises:
        ConfigError: The server cannot be reached, or refuses. Later failures are reported and raise nothing.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        folder: Path,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        say: Callable[[str], None] = say_line,
        kind: str = "sweep",
    ) -> None:
        self.server = Server(uri)
        self.say = say
        self.kind = kind
        try:
            self.server.ping()
            self.run_id = self._resume(folder) or self._start(experiment, name, folder, params, tags)
        except Exception as error:  # database drivers have their own kinds of errors
            problem = "cannot be reached" if may_pass(error) else f"refused the {kind}"
            raise ConfigError(
                f"tracking: MLflow at {self.server.shown} {problem}: {self.server.explain(error)}. The "
                f"{kind} needs a server that answers when it starts: start the server, or name another "
                "one in tracking.uri or MLFLOW_TRACKING_URI"
            ) from error

    def log(self, values: Mapping[str, float]) -> None:
        """Log the newest values of the run's own metrics; a NaN is left out."""
        now = get_current_time_millis()
        metrics = [
            Metric(legal_name(key), float(value), now, 0)
            for key, value in values.items()
            if not math.isnan(value)
        ]
        tags = true_name_tags(values)
        self._send("metrics", lambda: self.server.client.log_batch(self.run_id, metrics, tags=tags))

    def tag_child(self, run_id: str, tags: Mapping[str, str], status: str | None = None) -> None:
        """Set tags of a trial's run, and its status (such as KILLED for a pruned trial)."""

        def tag() -> None:
            legal = [RunTag(key, value) for key, value in legal_tags(tags).items()]
            self.server.client.log_batch(run_id, tags=legal)
            if status is not None:
                self.server.client.set_terminated(run_id, status)

        self._send(f"tags of run {run_id}", tag)

    def log_artifact(self, path: Path) -> None:
        """Store a file under its name."""
        self._send(path.name, lambda: self.server.client.log_artifact(self.run_id, str(path)))

    def finish(self, failed: bool = False) -> None:
        """Log the end."""
        status = "FAILED" if failed else "FINISHED"
        self._send("end", lambda: self.server.client.set_terminated(self.run_id, status))

    def _resume(self, folder: Path) -> str | None:
        run_id = saved_run_id(folder)
        if run_id is None:
            return None
        try:
            if self.server.client.get_run(run_id).info.lifecycle_stage != "active":
                return None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self.server.client.update_run(run_id, status="RUNNING")
        return run_id

    def _start(
        self, experiment: str, name: str, folder: Path, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str:
        run = self.server.client.create_run(
            self.server.experiment_id(experiment), tags=legal_tags(tags), run_name=legal_title(name)
        )
        for batch in in_batches(legal_params({key: str(value) for key, value in params.items()})):
            self.server.client.log_batch(run.info.run_id, params=batch)
        self.server.client.log_batch(run.info.run_id, tags=true_name_tags(params))
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RUN_ID, run.info.run_id)
        return run.info.run_id

    def _send(self, what: str, request: Callable[[], object]) -> None:
        """Try a request several times, then report the failure: it is no reason to end a sweep."""
        for attempt in range(ATTEMPTS):
            try:
                request()
                return
            except Exception as error:  # artifact stores have their own kinds of errors
                reason = self.server.explain(error)
                if not may_pass(error):
                    break
            if attempt < ATTEMPTS - 1:
                time.sleep(2.0**attempt)
        self.say(f"MLflow at {self.server.shown} does not have the {self.kind}'s {what}: {reason}")
