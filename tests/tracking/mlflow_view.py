"""What MLflow has of a run, and waiting for it."""

import time
from pathlib import Path

from mlflow import MlflowClient

TABLE = {"problem": ["1+1=", "2+2="], "solution": ["\\boxed{2}", "5"], "score": [0.9, None]}


def leave(tracker):
    """Let all events arrive, then stop as a killed process does: without logging an end."""
    eventually(lambda: tracker.undelivered == 0)
    tracker.close(5.0)


def eventually(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def client_of(tracker):
    """A client of the server of a `Tracker` or a `ParentRun`."""
    return MlflowClient(tracking_uri=tracker.server.uri)


def history(tracker, key):
    """The points of a curve: (step, value)."""
    return [(point.step, point.value) for point in client_of(tracker).get_metric_history(tracker.run_id, key)]


def run_of(tracker):
    return client_of(tracker).get_run(tracker.run_id)


def artifact(tracker, path, folder):
    """The content of a file among the run's artifacts, downloaded to `folder`."""
    return Path(client_of(tracker).download_artifacts(tracker.run_id, path, str(folder))).read_bytes()
