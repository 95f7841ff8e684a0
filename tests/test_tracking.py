"""Tracking against a real MLflow on sqlite."""

import json
import math

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from orchestrator.config import RunConfig, flat_settings, validate
from orchestrator.errors import ConfigError, RunError
from orchestrator.tracking import Tracker, score_figure, tracking_uri


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run in a folder of its own, shared by the tests: making the database takes seconds."""
    tree = {
        "run": {"name": "trial", "steps": 3, "dir": str(tmp_path_factory.mktemp("tracking") / "runs")},
        "model": {"path": "models/base"},
        "data": {"train": "train.jsonl"},
        "self_reward": {"token": "<|z|>"},
    }
    return validate(tree, RunConfig, "test")


@pytest.fixture(autouse=True)
def work_folder(tmp_path, monkeypatch):
    """Where a stray ./mlruns would show."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tracker(config):
    return Tracker(config, None)


@pytest.fixture
def resume(config, tracker):
    return lambda: Tracker(config, tracker.run_id)


def history(tracker, key):
    return [(point.step, point.value) for point in tracker.client.get_metric_history(tracker.run_id, key)]


def artifact(tracker, path):
    """The local file of an artifact, which lies beside the database."""
    root = tracker.client.get_run(tracker.run_id).info.artifact_uri
    assert root.startswith("file://")
    return root.removeprefix("file://") + "/" + path


def test_the_run_is_named_and_holds_every_setting(tracker, config):
    run = MlflowClient(f"sqlite:///{config.run.dir}/mlflow.db").get_run(tracker.run_id)
    assert run.info.run_name == "trial"
    assert run.info.status == "RUNNING"
    assert run.data.params == {key: str(value) for key, value in flat_settings(config).items()}
    assert run.data.params["loss.c_ref"] == "calibrate"
    assert tracker.client.get_experiment(run.info.experiment_id).name == "laser"


def test_settings_that_are_passed_through_may_be_many_and_long(config):
    engine_args = {f"argument_{number}": number for number in range(120)} | {"chat_template": "x" * 7000}
    tree = config.model_dump(mode="json") | {"rollout": {"engine_args": engine_args}}
    tracker = Tracker(validate(tree, RunConfig, "test"), None)
    params = tracker.client.get_run(tracker.run_id).data.params
    assert params["rollout.engine_args.argument_119"] == "119"
    assert set("x") == set(params["rollout.engine_args.chat_template"])


def test_artifacts_lie_beside_the_database(tracker, config):
    path = artifact(tracker, "config.yaml")
    assert path.startswith(str(config.run.dir.resolve()))
    with open(path) as file:
        assert "name: trial" in file.read()


def test_a_step_is_logged_once_also_when_it_is_trained_again(tracker, resume):
    tracker.log_step(1, {"time/step": 2.0, "loss/total": 0.5})
    tracker.log_step(2, {"time/step": 3.0, "loss/total": 0.25})
    resumed = resume()
    resumed.log_step(2, {"time/step": 9.0, "loss/total": 9.0})
    resumed.log_step(3, {"time/step": 4.0, "loss/total": 0.125})
    resumed.log_step(3, {"time/step": 9.0, "loss/total": 9.0})
    assert history(resumed, "loss/total") == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert history(resumed, "time/step") == [(1, 2.0), (2, 3.0), (3, 4.0)]


def test_nan_is_no_point_of_a_curve(tracker):
    tracker.log_step(1, {"time/step": 1.0, "self_reward/f1": math.nan})
    tracker.log_step(2, {"time/step": 1.0, "self_reward/f1": 0.5})
    assert history(tracker, "self_reward/f1") == [(2, 0.5)]


def test_an_evaluation_logs_figures_a_table_and_a_plot_once(tracker, resume):
    table = {"problem": ["1+1=", "2+2="], "solution": ["\\boxed{2}", "5"], "score": [0.9, None]}
    figure = score_figure(np.array([0.9, 0.1, -1.5], np.float32), np.array([True, False, False]), "test, step 0")
    tracker.log_evaluation("test", 0, {"accuracy": 0.5, "ece": math.nan}, table, figure)
    resume().log_evaluation("test", 0, {"accuracy": 0.9}, table, figure)
    assert history(tracker, "eval/test/accuracy") == [(0, 0.5)]
    assert history(tracker, "eval/test/ece") == []
    with open(artifact(tracker, "samples/test-000000.json")) as file:
        logged = json.load(file)
    assert logged == {"columns": ["problem", "solution", "score"], "data": [["1+1=", "\\boxed{2}", 0.9], ["2+2=", "5", None]]}
    with open(artifact(tracker, "scores/test-000000.png"), "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    resume().log_evaluation("test", 10, {"accuracy": 0.75}, table, None)
    assert history(tracker, "eval/test/accuracy") == [(0, 0.5), (10, 0.75)]


def test_an_evaluation_that_a_crash_cut_short_is_completed_and_nothing_is_there_twice(tracker, resume, monkeypatch):
    table = {"problem": ["1+1="], "score": [0.9]}

    def die(step, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(tracker, "_log", die)
    with pytest.raises(KeyboardInterrupt):
        tracker.log_evaluation("test", 4, {"accuracy": 0.5}, table, None)
    resume().log_evaluation("test", 4, {"accuracy": 0.5}, table, None)
    assert history(tracker, "eval/test/accuracy") == [(4, 0.5)]
    with open(artifact(tracker, "samples/test-000004.json")) as file:
        assert json.load(file)["data"] == [["1+1=", 0.9]]


def test_a_server_that_fails_is_one_message(tracker, monkeypatch):
    def locked(*arguments, **settings):
        raise MlflowException("database is locked")

    monkeypatch.setattr(tracker.client, "log_batch", locked)
    with pytest.raises(RunError, match=f"^tracking: MLflow at {tracker.uri} failed: database is locked$"):
        tracker.log_step(1, {"time/step": 1.0})


@pytest.mark.parametrize("correct", [True, False])
def test_scores_of_one_class_can_be_drawn(correct):
    figure = score_figure(np.array([0.2, 3.0], np.float32), np.array([correct, correct]), "test")
    drawn = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert drawn == 2  # the score of 3 lies within the axis


@pytest.mark.parametrize(("failed", "status"), [(False, "FINISHED"), (True, "FAILED")])
def test_the_end_of_a_run_has_a_status_and_resuming_takes_it_back(tracker, resume, failed, status):
    tracker.log_summary({"steps": 3, "c_ref": None})
    tracker.finish(failed)
    assert tracker.client.get_run(tracker.run_id).info.status == status
    with open(artifact(tracker, "summary.json")) as file:
        assert json.load(file) == {"steps": 3, "c_ref": None}
    resume()
    assert tracker.client.get_run(tracker.run_id).info.status == "RUNNING"


def test_a_run_that_the_server_does_not_know_is_a_clear_error(config, tracker):
    with pytest.raises(ConfigError, match=f"MLflow at {tracker.uri} refused the run: .*{'0' * 32}"):
        Tracker(config, "0" * 32)


def test_the_configured_server_comes_before_the_environments_and_that_before_sqlite(tmp_path, monkeypatch):
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert tracking_uri(None, tmp_path) == "http://environment:5000"
    assert tracking_uri("http://configured:5000", tmp_path) == "http://configured:5000"
