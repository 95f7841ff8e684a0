"""Addresses of MLflow servers, their errors and their secrets."""

import pytest
from mlflow import MlflowClient

from orchestrator.errors import ConfigError
from orchestrator.tracking.address import tracking_uri
from orchestrator.tracking.server import Server, without_password


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("ftp://host/x", "unsupported URI"),
        ("http://", "names no host"),
        ("http://host:port", "Port could not be cast"),
        ("postgresql+nothing://me:secret@host/db", "Can't load plugin"),
        ("sqlite", "maintenance"),
    ],
)
def test_an_address_that_no_mlflow_can_have_is_refused_before_anything_starts(configure, start, uri, reason):
    config = configure(uri)
    with pytest.raises(ConfigError, match=rf"^tracking.uri: .*{reason}") as error:
        start(config)
    assert "secret" not in str(error.value)
    assert not config.folder.exists()


def test_a_deleted_experiment_is_refused(configure, start):
    config = configure(tracking={"experiment": "deleted"})
    client = MlflowClient(f"sqlite:///{config.run.dir}/mlflow.db")
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(ConfigError, match="experiment 'deleted' has been deleted: restore it"):
        start(config)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:se:cr/e@t@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("https://me:secret@host/path", "https://me:***@host/path"),
        (
            "postgresql://host/db?user=me&password=secret&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("http://me:p?w/x@host/path?token=abc&run=1", "http://me:***@host/path?token=***&run=1"),
        ("https://me:@host", "https://me:***@host"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("sqlite:////runs/a:b@c.db", "sqlite:////runs/a:b@c.db"),
    ],
)
def test_a_password_is_not_shown(uri, shown):
    assert without_password(uri) == shown


def test_the_configured_server_wins_over_the_environment_and_that_over_sqlite(tmp_path, monkeypatch):
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert tracking_uri(None, tmp_path) == "http://environment:5000"
    assert tracking_uri("http://configured:5000", tmp_path) == "http://configured:5000"


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("postgresql://me:se%40cret@host/db", "login with se@cret or se%40cret failed"),
        ("postgresql://host/db?user=me&password=hush", "password hush was refused"),
    ],
)
def test_an_error_is_shown_on_one_line_without_passwords(uri, text):
    shown = Server(uri).explain(ValueError(f"no\n  {text}"))
    assert shown.startswith("no ")
    assert "***" in shown
    assert not any(secret in shown for secret in ("se@cret", "se%40cret", "hush"))
