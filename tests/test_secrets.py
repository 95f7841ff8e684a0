"""Secrets that are planted in the environment and in the configuration: nothing that is written holds one.

tests/end_to_end/test_train.py searches the folder of a real run in the same way.
"""

import io
import json

import pytest
from rich.console import Console

from dashboards.report import write_report
from orchestrator.cli import main
from orchestrator.config.schema import dump_config, public_settings
from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.files import write_atomically
from orchestrator.storage.run_log import logged_to
from orchestrator.terminal import RunProgress, SafeConsole
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.tracker import Tracker
from tests.settings import configure
from tests.tracking.mlflow_view import leave, run_of

ENVIRONMENT = {
    "LASER_API_KEY": "sk-planted-1",
    "HF_TOKEN": "hf_planted-2",
    "LASER_JUDGE_API_KEY": "sk-planted-3",
    "AWS_SECRET_ACCESS_KEY": "planted/4+=",
    "MLFLOW_TRACKING_PASSWORD": "planted-5",
    "MLFLOW_TRACKING_URI": "postgresql://me:planted/6@host/db",
}
IN_CONFIG = "planted-7"
SECRETS = ["sk-planted-1", "hf_planted-2", "sk-planted-3", "planted/4+=", "planted-5", "planted/6", IN_CONFIG]
ERROR = f"the server said: {' and '.join(SECRETS[:-1])}, at http://me:{IN_CONFIG}@host:5000"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def held(text):
    return [secret for secret in SECRETS if secret in text]


def train(config, console):
    """What a run writes, up to the error that ends it."""
    config.folder.mkdir()
    with logged_to(config.folder), RunProgress("planted", 2, 0, console) as progress:
        write_atomically(config.folder / "config.yaml", dump_config(config))
        tracker = Tracker(config, progress.say_plainly)
        tracker.log_step(1, {"loss/total": 0.5})
        tracker.log_note(1, ERROR)
        progress.say_plainly(ERROR)
        leave(tracker)
        yield tracker
        raise RunError(ERROR)


def test_nothing_that_a_run_writes_holds_a_secret(tmp_path, monkeypatch):
    database = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(tracking, "tracking_uri", lambda configured, runs: database)
    config = configure(
        run={"name": "planted", "dir": str(tmp_path)},
        tracking={"uri": f"http://me:{IN_CONFIG}@host:5000"},
    )
    output = io.StringIO()
    running = train(config, SafeConsole(file=output, width=120, force_terminal=False))
    tracker = next(running)
    with pytest.raises(RunError):
        next(running)
    write_report([config.folder], tmp_path / "report.html")
    run = run_of(tracker)
    assert "the server said" in json.dumps(run.data.tags), "what is searched for was written"
    assert "the server said" in (config.folder / "run.log").read_text()
    assert "the server said" in output.getvalue()
    assert held(output.getvalue()) == []
    assert held(json.dumps([run.data.tags, run.data.params])) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "report.html", "run.log", "config.yaml", "metrics.jsonl"} <= {
        path.name for path in files
    }
    for path in files:
        assert held(path.read_bytes().decode(errors="replace")) == [], path


def test_settings_for_others_have_no_password():
    config = configure(tracking={"uri": f"http://me:{IN_CONFIG}@host:5000"})
    assert public_settings(config)["tracking.uri"] == "http://me:***@host:5000"
    assert held(dump_config(config)) == []


def test_an_error_of_the_command_shows_none(capsys, monkeypatch):
    monkeypatch.setattr(
        "orchestrator.config.training.load_config", lambda *_: (_ for _ in ()).throw(ConfigError(ERROR))
    )
    assert main(["check", "run.yaml"]) == 2
    captured = capsys.readouterr()
    assert "the server said" in captured.err
    assert held(captured.out + captured.err) == []


def test_the_search_finds_what_is_written():
    """A console that hides nothing."""
    output = io.StringIO()
    Console(file=output, width=400).print(ERROR)
    assert held(output.getvalue()) == SECRETS
