"""What a run reports, as a real MLflow shows it."""

import json
import math

import pytest
from matplotlib.figure import Figure

from orchestrator.config.schema import flat_settings
from orchestrator.storage.journal import Journal, forget, read_events
from orchestrator.tracking import tracker as tracking
from tests.tracking.mlflow_view import TABLE, artifact, client_of, history, leave, run_of


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
    assert params["rollout.engine_args.chat_template"].endswith("xxx ... (cut: 7000 characters)")


def test_a_step_that_is_trained_again_is_logged_once(configure, start):
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


def test_a_forgotten_folder_is_another_run(configure, start):
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
    figure = Figure()
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
    assert (event.table, event.figure) == ("samples/test-000000.json", "scores/test-000000.png")
    assert json.loads((tracker.folder / event.table).read_text()) == expected
    run = run_of(tracker)
    shown = [table["path"] for table in json.loads(run.data.tags["mlflow.loggedArtifacts"])]
    assert shown == ["samples/test-000000.json", "samples/test-000010.json", "samples/other-000010.json"]


@pytest.mark.parametrize("ending", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_of_a_run_has_a_status_and_a_resumed_run_is_running(configure, start, tmp_path, ending, said):
    tracker = start(configure())
    tracker.log_summary({"steps": 3, "c_ref": None})
    tracker.finish(ending)
    tracker.finish(
        "FAILED" if ending == "FINISHED" else "FINISHED"
    )  # as a clean-up that does not know the ending does
    assert run_of(tracker).info.status == ending
    assert json.loads(artifact(tracker, "summary.json", tmp_path)) == {"steps": 3, "c_ref": None}
    assert json.loads((tracker.folder / "summary.json").read_text()) == {"steps": 3, "c_ref": None}
    start(configure())
    assert run_of(tracker).info.status == "RUNNING"
    assert said == []


def test_a_folder_without_a_journal_continues_its_mlflow_run(configure, start):
    """An earlier version wrote such folders."""
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


def test_a_tag_names_the_broken_health_rules(configure, start):
    tracker = start(configure())
    tracker.log_step(1, {"health/entropy": 0.0, "health/score": 0.0})
    tracker.log_step(2, {"health/entropy": 1.0, "health/score": 1.0})
    leave(tracker)
    assert run_of(tracker).data.tags["laser.health"] == "broken: entropy, score"
    again = start(configure())
    again.log_step(3, {"health/entropy": 0.0, "health/score": 0.0})
    leave(again)
    assert run_of(again).data.tags["laser.health"] == "healthy"


def test_no_password_gets_into_mlflow(configure, start, monkeypatch, tmp_path):
    """The configured address has a password; the database is the test's own."""
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
