"""Patience of the MLflow client, which reads it from the process's environment and from nowhere else.

MLflow 3.17 passes neither retries nor time limits from `MlflowClient` to its requests (`http_request` takes
both, its callers give neither), so this module changes environment variables of the whole process. It is
the only one in `tracking` and `models` that does. A variable that the user has set stays as it is.
"""

import contextlib
import os
from collections.abc import Iterator

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
"""Seconds that one request may take."""

QUICK = {RETRIES: "0", TIMEOUT: "20"}
"""For metrics. MLflow's own 7 retries block for minutes, and send again what may have arrived."""
PATIENT = {RETRIES: "3", TIMEOUT: "600"}
"""For models: a server that passes gigabytes on to its store answers only when they have arrived there."""
SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
"""MLflow's lines about a finished run would break the live panel."""


def set_client_defaults() -> None:
    """Let the requests of this process fail soon and print nothing, unless the user has set otherwise."""
    for name, value in (QUICK | SILENT).items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def patient_requests() -> Iterator[None]:
    """Give the requests of the block the time that a model needs.

    Use it after a quick request has reached the server.
    """
    quick = {name: value for name, value in QUICK.items() if os.environ.get(name) == value}
    os.environ.update({name: PATIENT[name] for name in quick})
    try:
        yield
    finally:
        os.environ.update(quick)
