"""Tracking against a real MLflow: on sqlite, and as a server that is killed, comes back, or refuses."""

import http.server
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from orchestrator.config.schema import flat_settings, validate
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.storage.journal import Journal, forget, read_events
from orchestrator.tracking import delivery
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.address import tracking_uri
from orchestrator.tracking.parent_run import SweepTracker
from orchestrator.tracking.server import may_pass, without_password
from orchestrator.tracking.tracker import Tracker, deliver_leftovers
from orchestrator.training.evaluate import score_figure

TABLE = {"problem": ["1+1=", "2+2="], "solution": ["\\boxed{2}", "5"], "score": [0.9, None]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder of runs for all tests: making its database takes seconds."""
    return tmp_path_factory.mktemp("tracking") / "runs"


@pytest.fixture
def work_folder(tmp_path, monkeypatch):
    """Where a stray ./mlruns would show."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def configure(runs, request, work_folder):
    """A run of the test's own; its tracking settings are the arguments."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)

    def make(uri=None, **sections):
        tree = {
            "run": {"name": name, "steps": 3, "dir": str(runs)},
            "model": {"path": "models/base"},
            "data": {"train": "train.jsonl"},
            "self_reward": {"token": "<|z|>"},
            "tracking": {"uri": uri},
        }
        return validate(tree | sections, RunConfig, "test")

    return make


@pytest.fixture
def said():
    return []


@pytest.fixture
def start(said):
    """Makes trackers, and lets none outlive its test."""
    trackers = []

    def make(config, **arguments):
        trackers.append(Tracker(config, said.append, **arguments))
        return trackers[-1]

    yield make
    for tracker in trackers:
        tracker._delivery.close(0.0)


def leave(tracker):
    """Let all arrive, and end as a killed process does: without an end."""
    eventually(lambda: tracker.undelivered == 0)
    tracker._delivery.close(5.0)


def eventually(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def client_of(tracker):
    return MlflowClient(tracking_uri=tracker._delivery.server.uri)


def history(tracker, key):
    return [(point.step, point.value) for point in client_of(tracker).get_metric_history(tracker.run_id, key)]


def run_of(tracker):
    return client_of(tracker).get_run(tracker.run_id)


def artifact(tracker, path, folder):
    return open(client_of(tracker).download_artifacts(tracker.run_id, path, str(folder)), "rb").read()


def test_the_run_is_named_and_holds_every_setting(configure, start, tmp_path):
    config = configure()
    tracker = start(config, tags={"mlflow.parentRunId": "abc"})
    assert tracker.undelivered == 0, "sqlite answers before the training starts"
    run = run_of(tracker)
    assert run.info.run_name == config.run.name
    assert run.info.status == "RUNNING"
    assert run.data.params == {key: str(value) for key, value in flat_settings(config).items()}
    assert run.data.params["loss.c_ref"] == "calibrate"
    assert run.data.tags["mlflow.parentRunId"] == "abc"
    assert client_of(tracker).get_experiment(run.info.experiment_id).name == "laser"
    assert (config.folder / "mlflow_run_id").read_text() == tracker.run_id
    assert run.info.artifact_uri.startswith(f"{config.run.dir.resolve().as_uri()}/mlartifacts/"), (
        "beside the database"
    )
    assert f"name: {config.run.name}" in artifact(tracker, "config.yaml", tmp_path).decode()


def test_settings_that_are_passed_through_may_be_many_and_long(configure, start):
    engine_args = {f"argument_{number}": number for number in range(120)} | {"chat_template": "x" * 7000}
    params = run_of(start(configure(rollout={"engine_args": engine_args}))).data.params
    assert params["rollout.engine_args.argument_119"] == "119"
    assert set("x") == set(params["rollout.engine_args.chat_template"])


def test_a_step_is_logged_once_also_when_it_is_trained_again(configure, start):
    tracker = start(configure())
    tracker.log_step(1, {"time/step": 2.0, "loss/total": 0.5})
    tracker.log_step(2, {"time/step": 3.0, "loss/total": 0.25, "self_reward/f1": math.nan})
    leave(tracker)
    resumed = start(configure())
    assert resumed.run_id == tracker.run_id
    resumed.log_step(2, {"time/step": 9.0, "loss/total": 9.0})
    resumed.log_step(3, {"time/step": 4.0, "loss/total": 0.125, "self_reward/f1": 0.5})
    resumed.log_step(3, {"time/step": 9.0, "loss/total": 9.0})
    leave(resumed)
    assert history(resumed, "loss/total") == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert history(resumed, "time/step") == [(1, 2.0), (2, 3.0), (3, 4.0)]
    assert history(resumed, "self_reward/f1") == [(3, 0.5)], "NaN is no point of a curve"


def test_a_folder_that_was_forgotten_is_another_run(configure, start):
    first = start(configure())
    first.log_step(1, {"loss/total": 0.5})
    leave(first)
    forget(first.folder)
    second = start(configure())
    second.log_step(1, {"loss/total": 0.25})
    leave(second)
    assert history(first, "loss/total") == [(1, 0.5)]
    assert history(second, "loss/total") == [(1, 0.25)]


def test_an_evaluation_logs_figures_a_table_and_a_plot_once(configure, start, tmp_path):
    tracker = start(configure())
    figure = score_figure(
        np.array([0.9, 0.1, -1.5], np.float32), np.array([True, False, False]), "test, step 0"
    )
    tracker.log_evaluation("test", 0, {"accuracy": 0.5, "ece": math.nan}, TABLE, figure)
    leave(tracker)
    resumed = start(configure())
    resumed.log_evaluation("test", 0, {"accuracy": 0.9}, {"problem": ["other"]}, figure)
    resumed.log_evaluation("test", 10, {"accuracy": 0.75}, TABLE, None)
    resumed.log_evaluation("other", 10, {"accuracy": 1.0}, TABLE, None)
    leave(resumed)
    assert history(tracker, "eval/test/accuracy") == [(0, 0.5), (10, 0.75)]
    assert history(tracker, "eval/other/accuracy") == [(10, 1.0)]
    assert history(tracker, "eval/test/ece") == []
    expected = {
        "columns": ["problem", "solution", "score"],
        "data": [["1+1=", "\\boxed{2}", 0.9], ["2+2=", "5", None]],
    }
    assert json.loads(artifact(tracker, "samples/test-000000.json", tmp_path)) == expected
    assert artifact(tracker, "scores/test-000000.png", tmp_path)[:8] == b"\x89PNG\r\n\x1a\n"
    event = read_events(tracker.folder)[1]
    assert (event["table"], event["figure"]) == ("samples/test-000000.json", "scores/test-000000.png")
    assert json.loads((tracker.folder / event["table"]).read_text()) == expected
    run = run_of(tracker)
    shown = [table["path"] for table in json.loads(run.data.tags["mlflow.loggedArtifacts"])]
    assert shown == ["samples/test-000000.json", "samples/test-000010.json", "samples/other-000010.json"]


def test_more_tables_than_a_tag_holds_leave_the_newest_in_view(configure, start, monkeypatch):
    # {"path": "samples/test-000000.json", "type": "table"} is 53 characters, a list of two 2 * 53 + 4.
    monkeypatch.setattr(delivery, "TAG_VALUE_LIMIT", 110)
    tracker = start(configure())
    for step in range(4):
        tracker.log_evaluation("test", step, {"accuracy": 0.5}, TABLE, None)
    leave(tracker)
    tag = run_of(tracker).data.tags["mlflow.loggedArtifacts"]
    assert len(tag) == 110
    assert [table["path"] for table in json.loads(tag)] == [
        "samples/test-000002.json",
        "samples/test-000003.json",
    ]
    assert {file.path for file in client_of(tracker).list_artifacts(tracker.run_id, "samples")} == {
        f"samples/test-00000{step}.json" for step in range(4)
    }


@pytest.mark.parametrize("ending", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_of_a_run_has_a_status_and_resuming_takes_it_back(configure, start, tmp_path, ending, said):
    tracker = start(configure())
    tracker.log_summary({"steps": 3, "c_ref": None})
    tracker.finish(ending)
    tracker.finish("FAILED" if ending == "FINISHED" else "FINISHED")  # as a clean-up does that does not know
    assert run_of(tracker).info.status == ending
    assert json.loads(artifact(tracker, "summary.json", tmp_path)) == {"steps": 3, "c_ref": None}
    assert json.loads((tracker.folder / "summary.json").read_text()) == {"steps": 3, "c_ref": None}
    start(configure())
    assert run_of(tracker).info.status == "RUNNING"
    assert said == []


@pytest.mark.parametrize("forgotten", ["deleted", "unknown"])
def test_a_run_that_the_server_no_longer_has_begins_anew_with_all_of_its_journal(configure, start, forgotten):
    first = start(configure())
    first.log_step(1, {"loss/total": 0.5})
    leave(first)
    if forgotten == "deleted":
        client_of(first).delete_run(first.run_id)
    else:
        client_of(first).set_tag(first.run_id, "laser.journal", "lost")
        (first.folder / "mlflow_run_id").write_text("0" * 32)
    second = start(configure())
    second.log_step(2, {"loss/total": 0.25})
    leave(second)
    assert second.run_id not in (first.run_id, "0" * 32)
    assert history(second, "loss/total") == [(1, 0.5), (2, 0.25)]
    assert run_of(second).data.params["run.steps"] == "3"


def test_a_run_that_is_deleted_under_way_begins_anew(configure, start, said):
    tracker = start(configure())
    tracker.log_step(1, {"loss/total": 0.5})
    eventually(lambda: tracker.undelivered == 0)
    first = tracker.run_id
    client_of(tracker).delete_run(first)
    tracker.log_step(2, {"loss/total": 0.25})
    leave(tracker)
    assert tracker.run_id != first
    assert history(tracker, "loss/total") == [(1, 0.5), (2, 0.25)]
    assert said == []


def test_a_run_whose_creation_was_not_acknowledged_is_found_again(configure, start):
    """The process died between the server's answer and the file with the run's id."""
    tracker = start(configure())
    tracker.log_step(1, {"loss/total": 0.5})
    leave(tracker)
    (tracker.folder / "mlflow_run_id").unlink()
    (tracker.folder / ".mlflow-sent").unlink()
    resumed = start(configure())
    leave(resumed)
    assert resumed.run_id == tracker.run_id
    assert history(resumed, "loss/total") == [(1, 0.5)]


@pytest.mark.parametrize("cursor", [0, 1, 2, 3, 5])
def test_what_was_sent_before_a_kill_and_not_counted_is_not_there_twice(
    configure, start, cursor, monkeypatch
):
    """An older cursor is what a kill between sending and counting leaves behind."""
    config = configure()
    tracker = start(config)
    tracker.log_step(1, {"loss/total": 0.5, "time/step": 1.0})
    tracker.log_evaluation("test", 1, {"accuracy": 0.5}, TABLE, None)
    tracker.log_step(2, {"loss/total": 0.25, "time/step": 1.0})
    tracker.log_step(3, {"loss/total": 0.125, "time/step": 1.0})
    leave(tracker)
    (config.folder / ".mlflow-sent").write_text(f"{cursor}\n")
    monkeypatch.setattr(delivery, "METRICS_PER_REQUEST", 2)  # several requests hold nothing new
    resumed = start(config)
    # The stores keep equal points once; points of another time would show.
    sent = []
    log_batch = resumed._delivery.server.client.log_batch
    monkeypatch.setattr(
        resumed._delivery.server.client,
        "log_batch",
        lambda run_id, metrics=(), **more: (sent.extend(metrics), log_batch(run_id, metrics=metrics, **more)),
    )
    resumed.log_step(4, {"loss/total": 0.0625, "time/step": 1.0})
    leave(resumed)
    assert history(resumed, "loss/total") == [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625)]
    assert history(resumed, "eval/test/accuracy") == [(1, 0.5)]
    assert {point.step for point in sent} == {4}


def test_a_request_that_only_half_arrived_is_completed(configure, start, monkeypatch):
    """Not every store writes a request as one transaction."""
    tracker = start(configure())
    client = tracker._delivery.server.client
    log_batch = client.log_batch
    failures = [MlflowException("the connection broke")]

    def half(run_id, metrics=(), **more):
        if failures:
            log_batch(run_id, metrics=metrics[:1], **more)
            raise failures.pop()
        log_batch(
            run_id,
            metrics=[
                type(point)(point.key, point.value, point.timestamp + 1, point.step) for point in metrics
            ],
            **more,
        )

    monkeypatch.setattr(client, "log_batch", half)
    tracker.log_step(1, {"loss/total": 0.5, "time/step": 2.0})
    leave(tracker)
    assert history(tracker, "loss/total") == [(1, 0.5)]
    assert history(tracker, "time/step") == [(1, 2.0)]


def test_a_server_that_is_started_only_later_gets_what_waits(configure, start, said, mlflow_process):
    """First during the run, then by the same command after its end."""
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
        == f"MLflow at {mlflow_process.uri} has not got everything: 6 events wait in {config.folder}; the same command sends them"
    )
    assert deliver_leftovers(config, said.append) == 0, "still away"
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
    assert found.info.start_time == read_events(config.folder)[0]["time"]


def test_a_run_that_was_killed_after_its_last_step_and_before_mlflow_heard_of_it_is_told_whole_and_finished(
    configure, work_folder
):
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


def test_all_steps_arrive_once_when_the_server_is_killed_and_comes_back(
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
    figure = score_figure(np.array([0.2, 3.0], np.float32), np.array([True, False]), "test")
    tracker.log_evaluation("test", 120, {"accuracy": 0.5}, TABLE, figure)
    eventually(lambda: said)
    assert tracker.undelivered > 50
    mlflow_server.start()
    train(121, 160)
    tracker.log_summary({"steps": 160})
    tracker.finish()
    assert max(times.values()) < 0.5, "training never waits for the server"
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
    away, back = said
    assert away.startswith(f"MLflow at {mlflow_server.uri} cannot be reached (")
    assert str(config.folder / "metrics.jsonl") in away
    assert back.startswith(f"MLflow at {mlflow_server.uri} answers again")


def test_a_server_that_accepts_and_never_answers_holds_nothing_up(configure, start, said, monkeypatch):
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


@pytest.fixture
def answering():
    """A server that answers everything with one status and text, which the test may change."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = server.body.encode()
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            server.requests += 1

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.status, server.body = 0, 500, ""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


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


def test_a_refusal_under_way_is_said_once_and_the_run_goes_on(configure, start, answering, said):
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
def test_a_server_that_is_overloaded_is_only_away(configure, start, answering, status, said):
    answering.status = status
    tracker = start(configure(f"http://127.0.0.1:{answering.server_port}"))
    assert "cannot be reached" in said[0]
    assert tracker._delivery.is_alive()


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
def test_an_address_of_no_mlflow_is_an_error_before_anything_is_started(configure, start, uri, reason):
    config = configure(uri)
    with pytest.raises(ConfigError, match=rf"^tracking.uri: .*{reason}") as error:
        start(config)
    assert "secret" not in str(error.value)
    assert not config.folder.exists()


def test_an_experiment_that_was_deleted_is_told(configure, start):
    config = configure(tracking={"experiment": "deleted"})
    client = MlflowClient(f"sqlite:///{config.run.dir}/mlflow.db")
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(ConfigError, match="experiment 'deleted' has been deleted: restore it"):
        start(config)


def test_a_locked_database_is_waited_for(configure, start, said):
    """One moment of it is not worth a line."""
    tracker = start(configure())
    client = tracker._delivery.server.client
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
tree = {"run": {"name": sys.argv[2], "steps": 3, "dir": sys.argv[1]}, "model": {"path": "m"}, "data": {"train": "t"},
        "self_reward": {"token": "z"}, "tracking": {"experiment": "two"}}
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


def test_no_password_gets_into_mlflow(configure, start, monkeypatch, tmp_path):
    """A database of its own that can be reached by an address with a password in it."""
    secret = "s3cret"
    uri = f"sqlite:///{tmp_path}/mlflow.db?password={secret}"
    monkeypatch.setattr(tracking, "tracking_uri", lambda configured, runs: f"sqlite:///{tmp_path}/mlflow.db")
    tracker = start(configure(uri))
    leave(tracker)
    run = run_of(tracker)
    assert run.data.params["tracking.uri"] == f"sqlite:///{tmp_path}/mlflow.db?password=***"
    config = artifact(tracker, "config.yaml", tmp_path).decode()
    assert "password=***" in config
    assert secret not in config


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:se:cr/e@t@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("https://me:secret@host/path", "https://me:***@host/path"),
        (
            "postgresql://host/db?user=me&password=secret&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("http://host:5000/path", "http://host:5000/path"),
        ("sqlite:////runs/a:b@c.db", "sqlite:////runs/a:b@c.db"),
    ],
)
def test_a_password_is_not_shown(uri, shown):
    assert without_password(uri) == shown


@pytest.mark.parametrize("correct", [True, False])
def test_scores_of_one_class_can_be_drawn(correct):
    figure = score_figure(np.array([0.2, 3.0], np.float32), np.array([correct, correct]), "test")
    drawn = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert drawn == 2  # the score of 3 lies within the axis


def test_the_configured_server_comes_before_the_environments_and_that_before_sqlite(tmp_path, monkeypatch):
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert tracking_uri(None, tmp_path) == "http://environment:5000"
    assert tracking_uri("http://configured:5000", tmp_path) == "http://configured:5000"


def test_a_sweeps_run_is_the_parent_of_its_trials(configure, start, runs, tmp_path, said):
    uri = f"sqlite:///{runs}/mlflow.db"
    sweep = SweepTracker(
        uri, "laser", "sweep", tmp_path / "sweep", {"sampler": "grid"}, {"laser.kind": "sweep"}, said.append
    )
    trial = start(configure(uri), tags={"mlflow.parentRunId": sweep.run_id})
    leave(trial)
    sweep.tag_child(trial.run_id, {"laser.pruned": "yes"}, "KILLED")
    sweep.log({"best/accuracy": 0.5, "best/ece": math.nan})
    report = tmp_path / "report.html"
    report.write_text("<html>")
    sweep.log_artifact(report)
    sweep.finish(failed=True)
    run = sweep.server.client.get_run(sweep.run_id)
    assert (run.info.run_name, run.info.status) == ("sweep", "FAILED")
    assert (run.data.params, run.data.metrics) == ({"sampler": "grid"}, {"best/accuracy": 0.5})
    assert run.data.tags["laser.kind"] == "sweep"
    assert artifact(sweep_view(sweep), "report.html", tmp_path / "sweep") == b"<html>"
    child = run_of(trial)
    assert (child.info.status, child.data.tags["laser.pruned"]) == ("KILLED", "yes")
    again = SweepTracker(uri, "laser", "sweep", tmp_path / "sweep", {"sampler": "grid"}, {}, said.append)
    assert again.run_id == sweep.run_id
    assert again.server.client.get_run(again.run_id).info.status == "RUNNING"
    again.server.client.delete_run(again.run_id)
    assert (
        SweepTracker(uri, "laser", "sweep", tmp_path / "sweep", {"sampler": "grid"}, {}, said.append).run_id
        != sweep.run_id
    )
    assert said == []


def sweep_view(sweep):
    """A sweep's tracker where the functions above expect a run's."""
    return type(
        "View", (), {"run_id": sweep.run_id, "_delivery": type("Inner", (), {"server": sweep.server})}
    )


def test_a_sweep_needs_its_server_at_the_start_and_no_longer_after_it(
    runs, tmp_path, said, monkeypatch, answering
):
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9 cannot be reached: .*Connection refused"):
        SweepTracker("http://127.0.0.1:9", "laser", "sweep", tmp_path, {}, {}, said.append)
    answering.status = 401
    with pytest.raises(ConfigError, match=r"refused the sweep: .*401"):
        SweepTracker(
            f"http://127.0.0.1:{answering.server_port}", "laser", "sweep", tmp_path, {}, {}, said.append
        )
    monkeypatch.setattr("orchestrator.tracking.parent_run.time.sleep", lambda seconds: None)
    sweep = SweepTracker(f"sqlite:///{runs}/mlflow.db", "laser", "sweep", tmp_path, {}, {}, said.append)
    failures = [ConnectionError("gone")] * 3

    def gone(*arguments, **more):
        if failures:
            raise failures.pop()

    monkeypatch.setattr(sweep.server.client, "log_batch", gone)
    sweep.log({"best/accuracy": 0.5})
    assert (failures, said) == ([], []), "three failures, then it is there"
    failures += [ConnectionError("gone")] * 4
    sweep.log({"best/accuracy": 0.5})
    assert said == [f"MLflow at sqlite:///{runs}/mlflow.db has not got the sweep's metrics: gone"]


def test_an_earlier_versions_folder_goes_on_in_its_run(configure, start):
    """It has an MLflow run, and no journal."""
    first = start(configure())
    first.log_step(1, {"loss/total": 0.5})
    leave(first)
    (first.folder / "metrics.jsonl").unlink()
    (first.folder / ".mlflow-sent").unlink()
    second = start(configure())
    second.log_step(2, {"loss/total": 0.25})
    leave(second)
    assert second.run_id == first.run_id
    assert history(second, "loss/total") == [(1, 0.5), (2, 0.25)]
    assert len(Journal(second.folder)) == 2
