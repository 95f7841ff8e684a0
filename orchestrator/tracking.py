"""MLflow: one run a training run, resumed with it. Parameters, metrics by step, sampled solutions and score distributions.

MLflow's history is append-only, so a step that was logged before a crash and is trained again after it is not logged twice.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from orchestrator.config import RunConfig, SFTConfig, dump_config, flat_settings
from orchestrator.errors import ConfigError, LaserError, RunError

PARAM_VALUE_LIMIT = 6000


def tracking_uri(config_uri: str | None, runs_folder: Path) -> str:
    """The configured server, else MLFLOW_TRACKING_URI, else sqlite in the folder of runs."""
    return config_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_folder}/mlflow.db"


class Tracker:
    """The MLflow run of a training run.

    Args:
        run_id: The run to go on with; None starts a new one.

    Raises:
        ConfigError: The server cannot be reached, or does not know `run_id`.
    """

    def __init__(self, config: RunConfig | SFTConfig, run_id: str | None) -> None:
        self.uri = tracking_uri(config.tracking.uri, config.run.dir)
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # not how it makes the tables of a new database
        self.client = MlflowClient(tracking_uri=self.uri)
        with self._server(ConfigError, "refused the run"):
            if run_id is None:
                self.run_id = self._start(config)
            else:
                self.client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
                self.run_id = run_id
        self.last_step = self._last_step_of("time/step") if run_id else -1

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a training step, once. Raises RunError when the server fails, as the other methods do."""
        if step > self.last_step:
            self._log(step, values)
            self.last_step = step

    def log_evaluation(self, name: str, step: int, values: Mapping[str, float], table: dict[str, list], figure: Any) -> None:
        """Figures `eval/<name>/...`, a table of sampled solutions and a plot of score distributions, once a step."""
        figures = {f"eval/{name}/{key}": value for key, value in values.items()}
        if step <= max(map(self._last_step_of, figures)):
            return
        with self._server():
            # The figures last, since they tell a resumed run that all is there; MLflow appends to a table that it has.
            samples = f"samples/{name}-{step:06d}.json"
            if samples not in {artifact.path for artifact in self.client.list_artifacts(self.run_id, "samples")}:
                self.client.log_table(self.run_id, table, samples)
            if figure is not None:
                self.client.log_figure(self.run_id, figure, f"scores/{name}-{step:06d}.png")
        self._log(step, figures)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        with self._server():
            self.client.log_dict(self.run_id, dict(summary), "summary.json")

    def finish(self, failed: bool = False) -> None:
        status = RunStatus.FAILED if failed else RunStatus.FINISHED
        with self._server():
            self.client.set_terminated(self.run_id, status=RunStatus.to_string(status))

    @contextlib.contextmanager
    def _server(self, kind: type[LaserError] = RunError, failure: str = "failed") -> Iterator[None]:
        """Turn MLflow's exceptions (a server that is gone, a database that is locked or full) into one message."""
        try:
            yield
        except MlflowException as error:
            raise kind(f"tracking: MLflow at {self.uri} {failure}: {error}") from error

    def _start(self, config: RunConfig | SFTConfig) -> str:
        experiment = self.client.get_experiment_by_name(config.tracking.experiment)
        # Beside the database; a server has its own artifact store.
        artifacts = (config.run.dir / "mlartifacts").resolve().as_uri() if self.uri.startswith("sqlite:") else None
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(config.tracking.experiment, artifacts)
        run = self.client.create_run(experiment_id, run_name=config.run.name)
        params = [Param(key, str(value)[:PARAM_VALUE_LIMIT]) for key, value in flat_settings(config).items()]
        self.client.log_batch(run.info.run_id, params=params)
        self.client.log_text(run.info.run_id, dump_config(config), "config.yaml")
        return run.info.run_id

    def _last_step_of(self, key: str) -> int:
        """The last step that has a value of this metric; -1 without one."""
        with self._server():
            return max((point.step for point in self.client.get_metric_history(self.run_id, key)), default=-1)

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        now = get_current_time_millis()
        # NaN says that a step does not define the value, such as the accuracy of an empty class: no point in the curve.
        points = [Metric(key, float(value), now, step) for key, value in values.items() if not np.isnan(value)]
        with self._server():
            self.client.log_batch(self.run_id, metrics=points)


def score_figure(scores: Float32[np.ndarray, "samples"], correct: Bool[np.ndarray, "samples"], title: str) -> Any:
    """Histogram of the self-reward scores of correct and of wrong solutions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(min(-0.5, float(scores.min())), max(1.5, float(scores.max())), 41).tolist()
    axes.hist(scores[correct], bins=bins, alpha=0.6, color="tab:green", label=f"correct ({int(correct.sum())})")
    axes.hist(scores[~correct], bins=bins, alpha=0.6, color="tab:red", label=f"wrong ({int((~correct).sum())})")
    axes.axvline(0.5, color="black", linewidth=1, linestyle="--", label="threshold 0.5")
    axes.set(xlabel="self-reward score", ylabel="solutions", title=title)
    axes.legend()
    return figure
