"""An MLflow server that may be unavailable or may refuse.

In: a tracking URI. Out: a client whose requests fail soon, what an error means, and messages without
passwords.
"""

import logging
import os
import re
from functools import cached_property
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import requests
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.protos.databricks_pb2 import INVALID_STATE
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from orchestrator.config.proxies import spare_this_machine
from orchestrator.errors import ConfigError
from orchestrator.shown_text import secrets_in, without_password
from orchestrator.storage.addresses import why_silent
from orchestrator.storage.files import atomically, locked
from orchestrator.tracking.client_environment import set_client_defaults
from orchestrator.tracking.names import legal_title

_PASSING = frozenset((408, 425, 429, 499, 500, 502, 503, 504))
_LONGEST_REASON = 400


def sqlite_uri(database: Path) -> str:
    """The URI of a sqlite database, whose path may have any characters."""
    path = str(database)
    uri = sqlalchemy.engine.URL.create("sqlite", database=path).render_as_string()
    # MLflow also makes the parent of what stands in the URI, with `%3F` where the folder has a `?`. Where
    # the path's own separators are escaped too, that parent is the current folder.
    return f"sqlite:///{quote(path, safe='')}" if "%" in uri else uri


def may_pass(error: Exception) -> bool:
    """Whether a later attempt may succeed: the server is unavailable or busy. Otherwise it refused."""
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in _PASSING and not isinstance(error, InvalidUrlException)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in _PASSING
    return isinstance(error, (OSError, sqlalchemy.exc.OperationalError))


class Refusal(MlflowException):
    """Raised here, not by MLflow: the server cannot take the run until the user changes something."""

    def get_http_status_code(self) -> int:
        return 400


class Server:
    """MLflow at `uri`.

    Attributes:
        shown: The URI without its password, for messages.

    Raises:
        ConfigError: No MLflow can have this URI. The constructor sends nothing, and no server has to run.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.shown = without_password(uri)
        set_client_defaults()
        spare_this_machine(uri)
        # Our own messages say what failed. MLflow also logs how it makes a new database's tables, and
        # urllib3 each attempt.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        for name in ("mlflow.store.db.utils", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._check_uri()
        except (MlflowException, ValueError, sqlalchemy.exc.ArgumentError) as error:
            raise ConfigError(
                f"tracking.uri: {self.shown!r} is not the address of an MLflow server "
                f"({self.explain(error)}). Use http(s)://host:port, "
                "postgresql://user:password@host/database or sqlite:///file, here or in MLFLOW_TRACKING_URI"
            ) from error

    @property
    def is_sqlite(self) -> bool:
        return self.uri.startswith("sqlite:")

    @cached_property
    def client(self) -> MlflowClient:
        """The client.

        The first access takes seconds for a new database, and minutes for an unavailable one.
        """
        if self.is_sqlite and (path := self._database()).name not in ("", ":memory:"):
            _make_database(path)
        return MlflowClient(tracking_uri=self.uri)

    @property
    def source(self) -> str:
        """Where the address comes from."""
        named = self.uri == os.environ.get("MLFLOW_TRACKING_URI")
        return "MLFLOW_TRACKING_URI" if named else "run.dir" if self.is_sqlite else "tracking.uri"

    def ping(self) -> None:
        """Return when something answers at the address; requests themselves would wait much longer.

        Raises:
            ConnectionError: Nothing does.
        """
        if not self.is_sqlite and (reason := why_silent(self.uri)) is not None:
            raise ConnectionError(f"{reason}; the address is that of {self.source}")

    def experiment_id(self, name: str) -> str:
        """The experiment of this name, which is created if it does not exist.

        Raises:
            Refusal: The experiment has been deleted.
            Exception: What MLflow raises.
        """
        name = legal_title(name)
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self.client.create_experiment(name, self._artifact_location())
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.client.get_experiment_by_name(name)  # another run created it meanwhile
        if experiment.lifecycle_stage != "active":
            raise Refusal(
                f"its experiment {name!r} has been deleted: restore it, or choose another "
                "tracking.experiment",
                INVALID_STATE,
            )
        return experiment.experiment_id

    def explain(self, error: BaseException) -> str:
        """The error on one line, without passwords."""
        text = " ".join(str(error).split()) or type(error).__name__
        # The cause of a failed connection is enough; the text around it repeats the address.
        if cause := re.search(r"Caused by \w+\((.*)\)\)", text):
            text = re.sub(r"HTTPS?Connection(Pool)?\([^)]*\): ", "", cause[1]).strip("\"'")
        for secret in secrets_in(self.uri):
            text = text.replace(secret, "***").replace(unquote(secret), "***")
        return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."

    def _artifact_location(self) -> str | None:
        """Beside a sqlite database; None for a server, which has its own artifact store."""
        return _artifacts_beside(self._database()) if self.is_sqlite else None

    def _database(self) -> Path:
        return Path(sqlalchemy.engine.make_url(self.uri).database or "")

    def _check_uri(self) -> None:
        scheme = urlsplit(self.uri).scheme
        if scheme.startswith(tuple(DATABASE_ENGINES)):
            sqlalchemy.engine.make_url(self.uri).get_dialect()
            return
        if scheme in ("http", "https"):
            parts = urlsplit(self.uri)
            if not parts.hostname or parts.port == 0:
                raise ValueError("it names no host")
        _ = self.client  # sends nothing, and refuses an unknown scheme


def _make_database(path: Path) -> None:
    """Create a sqlite database with MLflow's tables, unless it exists.

    MLflow creates the tables in dozens of migrations, which take seconds. Two processes at once, or a kill,
    would leave a database that no process can open. So one process creates it under another name, then
    renames it.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        with atomically(path) as partial:
            partial.with_name(f"{partial.name}-journal").unlink(missing_ok=True)
            SqlAlchemyStore(sqlite_uri(partial), _artifacts_beside(path)).engine.dispose()


def _artifacts_beside(database: Path) -> str:
    """The URI of the folder for artifacts. MLflow puts it into SQL, in which a URI needs no quotes."""
    return (database.parent / "mlartifacts").resolve().as_uri()
