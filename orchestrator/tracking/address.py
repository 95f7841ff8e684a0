"""Where the curves are: the tracking URI and the command that shows them."""

import os
from pathlib import Path

from mlflow.exceptions import MlflowException

from orchestrator.storage.journal import saved_run_id
from orchestrator.terminal import program
from orchestrator.tracking.server import Server, without_password


def tracking_command(tracking_uri: str, folder: Path | None = None) -> str:
    """Where the curves are: a server's address, to the page of the run in `folder` if it has one; or the command that shows a database."""

    place = without_password(tracking_uri)
    if not place.startswith(("http://", "https://")):
        return f"{program('mlflow')} ui --backend-store-uri {place}"
    return place.rstrip("/") + (_run_page(tracking_uri, folder) if folder is not None else "")


def _run_page(tracking_uri: str, folder: Path) -> str:
    """What follows the server's address; nothing while the server is away or does not know the run."""

    run_id = saved_run_id(folder)
    if run_id is None:
        return ""
    try:
        return (
            f"/#/experiments/{Server(tracking_uri).client.get_run(run_id).info.experiment_id}/runs/{run_id}"
        )
    except MlflowException:
        return ""


def tracking_uri(config_uri: str | None, runs_folder: Path) -> str:
    """The configured server, else MLFLOW_TRACKING_URI, else sqlite in the folder of runs."""
    return config_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_folder}/mlflow.db"
