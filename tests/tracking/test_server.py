"""Addresses of MLflow servers, their errors and their secrets."""

import shlex
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from orchestrator.errors import ConfigError
from orchestrator.shown_text import without_password
from orchestrator.tracking.address import tracking_command, tracking_uri
from orchestrator.tracking.server import Server
from tests.proxies import set_proxies


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


def test_a_server_on_this_machine_is_asked_without_a_proxy(monkeypatch):
    set_proxies(monkeypatch, http_proxy="http://127.0.0.1:1")
    Server("http://127.0.0.7:5000")
    assert requests.utils.get_environ_proxies("http://127.0.0.7:5000/api") == {}
    assert requests.utils.get_environ_proxies("http://mlflow.example") != {}


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


@pytest.mark.parametrize("name", ["a?b %20c", "-100%#&;", "größe 'x' \"y\"[1]*", "a:b@c\nd"])
def test_a_database_lies_in_the_folder_of_runs_whatever_its_name(tmp_path, monkeypatch, name):
    """MLflow reads the place from a URI, and makes SQL of the current folder."""
    runs = tmp_path / name / "runs"
    runs.mkdir(parents=True)
    monkeypatch.chdir(runs.parent)
    uri = tracking_uri(None, runs)
    client = Server(uri).client
    run = client.create_run(Server(uri).experiment_id("laser"))
    client.log_metric(run.info.run_id, "a", 0.5)
    (runs / "file.txt").write_text("kept")
    client.log_artifact(run.info.run_id, str(runs / "file.txt"), "sub")
    assert MlflowClient(uri).get_run(run.info.run_id).data.metrics == {"a": 0.5}
    copy = client.download_artifacts(run.info.run_id, "sub/file.txt", str(tmp_path))
    assert Path(copy).read_text() == "kept"
    assert {path.name for path in runs.iterdir()} == {
        ".mlflow.db.lock", "file.txt", "mlartifacts", "mlflow.db",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {name, "file.txt"}
    assert [path.name for path in runs.parent.iterdir()] == ["runs"]
    command = shlex.split(tracking_command(uri))
    assert command[1:] == ["ui", "--backend-store-uri", uri], "a shell passes it on as it is"


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
