"""The MLflow run of a sweep or an evaluation."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from orchestrator.errors import ConfigError
from orchestrator.storage.files import write_atomically
from orchestrator.storage.journal import RUN_ID, saved_run_id
from orchestrator.tracking.delivery import PARAM_VALUE_LIMIT
from orchestrator.tracking.server import Server, may_pass

ATTEMPTS = 4
"""Of a request about a sweep's parent run, with pauses of 1, 2 and 4 s."""


class SweepTracker:
    """The MLflow run of a sweep, the parent of its trials' runs, or of an evaluation. The server has to be there when it starts.

    Args:
        folder: Of the sweep; `mlflow_run_id` in it names the run to go on with.
        kind: What it is, for messages.

    Raises:
        ConfigError: The server cannot be reached, or refuses. Later failures are said, and no error.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        folder: Path,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        say: Callable[[str], None] = print,
        kind: str = "sweep",
    ) -> None:
        self.server, self.say, self.kind = Server(uri), say, kind
        try:
            self.run_id = self._resume(folder) or self._start(experiment, name, folder, params, tags)
        except Exception as error:  # database drivers raise errors of their own kinds
            what = "cannot be reached" if may_pass(error) else f"refused the {kind}"
            raise ConfigError(
                f"tracking: MLflow at {self.server.shown} {what}: {self.server.explain(error)}. The {kind} needs a server that answers "
                "when it starts: start it, or set tracking.uri (or MLFLOW_TRACKING_URI) to another"
            ) from error

    def log(self, values: Mapping[str, float]) -> None:
        """The newest values of the sweep's own metrics."""
        now = get_current_time_millis()
        metrics = [
            Metric(key, float(value), now, 0) for key, value in values.items() if not math.isnan(value)
        ]
        self._send(
            "metrics", lambda: self.server.client.log_batch(self.run_id, metrics=metrics, synchronous=True)
        )

    def tag_child(self, run_id: str, tags: Mapping[str, str], status: str | None = None) -> None:
        """Tags of a trial's run, and its status (such as KILLED for one that was pruned)."""

        def tag() -> None:
            self.server.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            if status is not None:
                self.server.client.set_terminated(run_id, status)

        self._send(f"tags of run {run_id}", tag)

    def log_artifact(self, path: Path) -> None:
        """A file, under its own name."""
        self._send(path.name, lambda: self.server.client.log_artifact(self.run_id, str(path)))

    def finish(self, failed: bool = False) -> None:
        self._send(
            "the end",
            lambda: self.server.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED"),
        )

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
            self.server.experiment_id(experiment), tags=dict(tags), run_name=name
        )
        entries = [Param(key, str(value)[:PARAM_VALUE_LIMIT]) for key, value in params.items()]
        self.server.client.log_batch(run.info.run_id, params=entries)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RUN_ID, run.info.run_id)
        return run.info.run_id

    def _send(self, what: str, request: Callable[[], object]) -> None:
        """Try some times; the sweep is worth more than its page in MLflow."""
        for attempt in range(ATTEMPTS):
            try:
                request()
                return
            except Exception as error:  # artifact stores raise errors of their own kinds; told below
                reason = self.server.explain(error)
                if not may_pass(error):
                    break
            if attempt < ATTEMPTS - 1:
                time.sleep(2.0**attempt)
        self.say(f"MLflow at {self.server.shown} has not got the {self.kind}'s {what}: {reason}")
