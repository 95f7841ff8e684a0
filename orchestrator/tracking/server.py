"""An MLflow server that may be away or may refuse: what its URI must look like, what its errors mean, how they are told.

In: a tracking URI. Out: a client whose requests fail soon, and messages without passwords.
"""

import logging
import os
import re
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.protos.databricks_pb2 import INVALID_STATE
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from orchestrator.errors import ConfigError
from orchestrator.storage.files import atomically, locked

REQUEST_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow's own 7 block for minutes, and send again what may have arrived
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # its lines would break the panel
}
"""Environment variables of the MLflow client, unless the user has set them; the timeout is in seconds."""

_PASSING = frozenset((408, 425, 429, 499, 500, 502, 503, 504))
_LONGEST_REASON = 400


def without_password(uri: str) -> str:
    """The URI with `***` for its password, also one given as a parameter."""
    uri = re.sub(r"(//[^/:@]*):.*@", r"\1:***@", uri)
    return re.sub(r"([?&][^=&]*(?:password|token|secret)[^=&]*=)[^&]*", r"\1***", uri, flags=re.IGNORECASE)


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: the server is away, busy or locked. Otherwise it has refused."""
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in _PASSING and not isinstance(error, InvalidUrlException)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in _PASSING
    return isinstance(error, (OSError, sqlalchemy.exc.OperationalError))


class Refusal(MlflowException):
    """Our own: this server, as it is, cannot take the run."""

    def get_http_status_code(self) -> int:
        return 400


class Server:
    """MLflow at `uri`.

    Raises:
        ConfigError: The URI cannot be that of any MLflow. Nothing is sent, and no server has to be there.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.shown = uri, without_password(uri)
        for name, value in REQUEST_DEFAULTS.items():
            os.environ.setdefault(name, value)
        # We say ourselves what failed; MLflow also tells how it makes the tables of a new database, urllib3 each attempt.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        for name in ("mlflow.store.db.utils", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._check_uri()
        except (MlflowException, ValueError, sqlalchemy.exc.ArgumentError) as error:
            raise ConfigError(
                f"tracking.uri: {self.shown!r} is no address of an MLflow server ({self.explain(error)}). Use http(s)://host:port, "
                "postgresql://user:password@host/database or sqlite:///file, here or in MLFLOW_TRACKING_URI"
            ) from error

    @property
    def is_sqlite(self) -> bool:
        return self.uri.startswith("sqlite:")

    @cached_property
    def client(self) -> MlflowClient:
        """Making it takes seconds for a new database, and minutes for one that is away."""
        if self.is_sqlite and (path := self._database()).name not in ("", ":memory:"):
            _make_database(path)
        return MlflowClient(tracking_uri=self.uri)

    def experiment_id(self, name: str) -> str:
        """The experiment of this name, made if there is none. Raises what MLflow raises, and Refusal when it has been deleted."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            # Beside the database; a server has its own artifact store.
            artifacts = (
                (self._database().parent / "mlartifacts").resolve().as_uri() if self.is_sqlite else None
            )
            try:
                return self.client.create_experiment(name, artifacts)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.client.get_experiment_by_name(
                    name
                )  # another run of the same moment was first
        if experiment.lifecycle_stage != "active":
            raise Refusal(
                f"its experiment {name!r} has been deleted: restore it, or choose another tracking.experiment",
                INVALID_STATE,
            )
        return experiment.experiment_id

    def explain(self, error: BaseException) -> str:
        """The error on one line, without the password."""
        text = " ".join(str(error).split()) or type(error).__name__
        if cause := re.search(
            r"Caused by \w+\((.*)\)\)", text
        ):  # of a connection that failed; what is around it repeats the address
            text = re.sub(r"HTTPS?Connection(Pool)?\([^)]*\): ", "", cause[1]).strip("\"'")
        if password := re.search(r"//[^/:@]*:(.*)@", self.uri):
            for form in (password[1], unquote(password[1])):
                text = text.replace(form, "***") if form else text
        return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."

    def _database(self) -> Path:
        return Path(self.uri.removeprefix("sqlite:///").partition("?")[0])

    def _check_uri(self) -> None:
        scheme = urlsplit(self.uri).scheme
        if scheme.startswith(tuple(DATABASE_ENGINES)):
            sqlalchemy.engine.make_url(self.uri).get_dialect()
            return
        if scheme in ("http", "https"):
            parts = urlsplit(self.uri)
            if not parts.hostname or parts.port == 0:
                raise ValueError("it names no host")
        _ = self.client  # sends nothing; refuses a scheme that it does not know


def _make_database(path: Path) -> None:
    """A new sqlite database with MLflow's tables, if there is none yet.

    MLflow makes them in dozens of migrations, for seconds: two processes at once, or a kill, would leave a database that no process can
    open again. So it is made under another name, by one process.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        with atomically(path) as partial:
            partial.with_name(f"{partial.name}-journal").unlink(missing_ok=True)
            SqlAlchemyStore(f"sqlite:///{partial}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
