"""Delivery to a real server that is killed, comes back, starts late, never answers or refuses."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from orchestrator.errors import ConfigError
from orchestrator.storage.journal import Journal, read_events
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.address import tracking_uri
from orchestrator.tracking.health import DeliveryState
from orchestrator.tracking.server import may_pass
from orchestrator.tracking.tracker import deliver_leftovers
from tests.tracking.mlflow_view import TABLE, artifact, eventually, history, leave, run_of


def test_a_server_that_starts_late_gets_the_waiting_events(configure, start, said, mlflow_process):
    """The server is down during the run; the same command sends the events after its end."""
    mlflow_process.kill()
    config = configure(mlflow_process.uri)
    began = time.monotonic()
    tracker = start(config)
    assert time.monotonic() - began < 5
    assert tracker.run_id is None
    tracker.log_step(1, {"loss/total": 0.5})
    tracker.log_step(2, {"loss/total": 0.25})
    tracker.log_evaluation("test", 2, {"accuracy": 0.5}, TABLE, None)
    tracker.log_summary({"steps": 2})
    tracker.finish(timeout_s=0.3)
    assert tracker.undelivered == 6
    assert len(said) == 2
    assert (
        said[1]
        == f"MLflow at {mlflow_process.uri} does not have all events: 6 events wait in {config.folder}. "
        "Run the same command again to send them"
    )
    assert deliver_leftovers(config, said.append) == 0, "the server is still down"
    mlflow_process.start()
    assert deliver_leftovers(config, said.append) == 6
    assert deliver_leftovers(config, said.append) == 0
    found = MlflowClient(tracking_uri=mlflow_process.uri).get_run(
        (config.folder / "mlflow_run_id").read_text()
    )
    assert (found.info.status, found.data.metrics) == (
        "FINISHED",
        {"loss/total": 0.25, "eval/test/accuracy": 0.5},
    )
    assert found.info.start_time == read_events(config.folder)[0].time


def test_a_run_that_was_killed_after_its_last_step_is_delivered_as_finished(configure, work_folder):
    config = configure(None)
    journal = Journal(config.folder)
    journal.start(config.run.name)
    journal.step(1, {"loss/total": 0.25})
    (config.folder / "summary.json").write_text("{}")  # the kill came before the status
    assert deliver_leftovers(config, tags={"laser.kind": "branch"}, finished=True) == 4
    assert deliver_leftovers(config, finished=True) == 0
    client = MlflowClient(tracking_uri=tracking_uri(config.tracking.uri, config.run.dir))
    found = client.get_run((config.folder / "mlflow_run_id").read_text())
    assert (found.info.status, found.data.tags["laser.kind"], found.data.metrics) == (
        "FINISHED",
        "branch",
        {"loss/total": 0.25},
    )
    assert [artifact.path for artifact in client.list_artifacts(found.info.run_id)] == [
        "config.yaml",
        "summary.json",
    ]


def test_all_steps_arrive_once_when_the_server_is_killed_and_restarted(
    configure, start, said, mlflow_server, tmp_path
):
    config = configure(mlflow_server.uri)
    tracker = start(config)
    times = {}

    def train(first, last):
        for step in range(first, last + 1):
            began = time.perf_counter()
            tracker.log_step(step, {f"metric/{number}": step + number / 100 for number in range(25)})
            times[step] = time.perf_counter() - began
            time.sleep(0.005)

    def die_at(step):
        eventually(lambda: tracker.journal.last_step >= step)
        mlflow_server.kill()

    killer = threading.Thread(target=die_at, args=(60,))  # in the middle of requests
    killer.start()
    train(1, 120)
    killer.join()
    tracker.log_evaluation("test", 120, {"accuracy": 0.5}, TABLE, Figure())
    eventually(lambda: said)
    assert tracker.undelivered > 50
    mlflow_server.start()
    train(121, 160)
    tracker.log_summary({"steps": 160})
    tracker.finish()
    assert max(times.values()) < 3, "training never waits for the server"
    for number in (0, 24):
        assert history(tracker, f"metric/{number}") == [(step, step + number / 100) for step in range(1, 161)]
    assert history(tracker, "eval/test/accuracy") == [(120, 0.5)]
    assert json.loads(artifact(tracker, "samples/test-000120.json", tmp_path))["data"][0] == [
        "1+1=",
        "\\boxed{2}",
        0.9,
    ]
    assert artifact(tracker, "scores/test-000120.png", tmp_path)[1:4] == b"PNG"
    assert artifact(tracker, "config.yaml", tmp_path).startswith(b"run:")
    run = run_of(tracker)
    assert (run.info.status, run.data.params["run.steps"]) == ("FINISHED", "3")
    outage, recovery = said
    assert outage.startswith(f"MLflow at {mlflow_server.uri} cannot be reached (")
    assert str(config.folder / "metrics.jsonl") in outage
    assert recovery.startswith(f"MLflow at {mlflow_server.uri} answers again")


def test_a_server_that_accepts_and_never_answers_delays_nothing(configure, start, said, monkeypatch):
    monkeypatch.setattr(tracking, "FIRST_ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        tracker = start(configure(f"http://127.0.0.1:{mute.getsockname()[1]}"))
        for step in range(1, 11):
            tracker.log_step(step, {"loss/total": 0.5})
        tracker.finish(timeout_s=0.3)
        assert time.monotonic() - began < 2
    assert "no answer within 0.3 s" in said[0]
    assert "12 events wait" in said[1]


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_at_the_start_is_an_error_that_shows_no_password(
    configure, start, answering, status, said
):
    answering.status, answering.body = status, "You are not me:secret"
    config = configure(f"http://me:secret@127.0.0.1:{answering.server_port}")
    with pytest.raises(
        ConfigError, match=rf"http://me:\*\*\*@127.0.0.1:{answering.server_port} refused the run: .*{status}"
    ) as error:
        start(config)
    assert "secret" not in str(error.value)
    assert said == []


def test_a_later_refusal_is_reported_once_and_the_run_continues(configure, start, answering, said):
    answering.status = 503
    tracker = start(configure(f"http://me:secret@127.0.0.1:{answering.server_port}"))
    assert len(said) == 1
    answering.status, answering.body = (
        403,
        '{"error_code": "PERMISSION_DENIED", "message": "not yours, secret"}',
    )
    eventually(lambda: len(said) == 2)
    seen = answering.requests
    for step in (1, 2):
        tracker.log_step(step, {"loss/total": 0.5})
    tracker.finish()
    assert answering.requests == seen
    assert "refuses the run: PERMISSION_DENIED: not yours, ***. Nothing more is sent" in said[1]
    assert "(PERMISSION_DENIED: not yours, ***): 4 events wait in" in said[2]
    assert "secret" not in "".join(said)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_overloaded_server_is_unavailable_and_does_not_refuse(configure, start, answering, status, said):
    answering.status = status
    tracker = start(configure(f"http://127.0.0.1:{answering.server_port}"))
    assert "cannot be reached" in said[0]
    assert tracker.delivery_state is DeliveryState.UNAVAILABLE


def test_a_locked_database_is_retried(configure, start, said):
    """One such moment is not reported."""
    tracker = start(configure())
    client = tracker.server.client
    log_batch, failures = client.log_batch, [MlflowException("database is locked", error_code=7)]

    def locked_once(*arguments, **more):
        if failures:
            raise failures.pop()
        log_batch(*arguments, **more)

    assert may_pass(failures[0])
    client.log_batch = locked_once
    tracker.log_step(1, {"time/step": 1.0})
    leave(tracker)
    assert history(tracker, "time/step") == [(1, 1.0)]
    assert said == []


TRIAL = """
import sys
from orchestrator.config.schema import validate
from orchestrator.config.training import RunConfig
from orchestrator.tracking.tracker import Tracker
tree = {"run": {"name": sys.argv[2], "steps": 3, "dir": sys.argv[1]}, "model": {"path": "m"},
        "data": {"train": "t"}, "self_reward": {"token": "z"}, "tracking": {"experiment": "two"}}
tracker = Tracker(validate(tree, RunConfig, "test"))
for step in range(1, 301):
    tracker.log_step(step, {f"metric/{number}": float(step) for number in range(10)})
tracker.finish(timeout_s=80)
sys.exit(tracker.undelivered)
"""


def test_two_processes_log_to_one_new_database_at_once(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    trials = [
        subprocess.Popen(
            [sys.executable, "-c", TRIAL, str(tmp_path / "runs"), name],
            env=environment,
            stdout=-1,
            stderr=-2,
            text=True,
        )
        for name in ("a", "b")
    ]
    for trial in trials:
        output, _ = trial.communicate(timeout=90)
        assert (trial.returncode, output) == (0, "")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("two").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["a", "b"]
    for run in found:
        points = client.get_metric_history(run.info.run_id, "metric/9")
        assert [(point.step, point.value) for point in points] == [
            (step, float(step)) for step in range(1, 301)
        ]
