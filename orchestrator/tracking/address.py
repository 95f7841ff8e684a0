"""Where the curves are: the tracking URI, and the page or command that shows them."""

import os
import shlex
from pathlib import Path

from mlflow.exceptions import MlflowException

from orchestrator.shown_text import without_password
from orchestrator.storage.journal import saved_run_id
from orchestrator.terminal import program
from orchestrator.tracking.server import Server, sqlite_uri


def tracking_command(tracking_uri: str, folder: Path | None = None) -> str:
    """How to see the curves.

    Args:
        folder: Of the run whose page is wanted.

    Returns:
        A server's address, with the page of the run if the server has it; for a database, the command that
        shows it.
    """
    place = without_password(tracking_uri)
    if not place.startswith(("http://", "https://")):
        return f"{program('mlflow')} ui --backend-store-uri {shlex.quote(place)}"
    return place.rstrip("/") + (_run_page(tracking_uri, folder) if folder is not None else "")


def tracking_uri(config_uri: str | None, runs_folder: Path) -> str:
    """The configured server, else MLFLOW_TRACKING_URI, else a sqlite database in the folder of runs."""
    return config_uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(runs_folder / "mlflow.db")


def _run_page(tracking_uri: str, folder: Path) -> str:
    """The run's page below the server's address; "" if the server is unavailable or does not have the run."""
    run_id = saved_run_id(folder)
    if run_id is None:
        return ""
    try:
        server = Server(tracking_uri)
        server.ping()
        experiment = server.client.get_run(run_id).info.experiment_id
    except (MlflowException, OSError):
        return ""
    return f"/#/experiments/{experiment}/runs/{run_id}"
