"""A journal's events in an MLflow run: each shows once, whatever was interrupted."""

import json

import pytest
from mlflow.exceptions import MlflowException

from orchestrator.tracking import run_writer
from tests.tracking.mlflow_view import TABLE, client_of, eventually, history, leave, run_of


@pytest.mark.parametrize("forgotten", ["deleted", "unknown"])
def test_a_run_that_the_server_no_longer_has_is_created_again_with_all_of_its_journal(
    configure, start, forgotten
):
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


def test_a_run_that_is_deleted_while_it_trains_is_created_again(configure, start, said):
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


def test_a_run_whose_creation_was_not_confirmed_is_found_again(configure, start):
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
def test_events_that_were_sent_but_not_counted_before_a_kill_show_once(configure, start, cursor, monkeypatch):
    """A kill between sending and counting leaves such an old cursor."""
    config = configure()
    tracker = start(config)
    tracker.log_step(1, {"loss/total": 0.5, "time/step": 1.0})
    tracker.log_evaluation("test", 1, {"accuracy": 0.5}, TABLE, None)
    tracker.log_step(2, {"loss/total": 0.25, "time/step": 1.0})
    tracker.log_step(3, {"loss/total": 0.125, "time/step": 1.0})
    leave(tracker)
    (config.folder / ".mlflow-sent").write_text(f"{cursor}\n")
    monkeypatch.setattr(run_writer, "METRICS_PER_REQUEST", 2)  # so that several requests repeat old points
    resumed = start(config)
    # MLflow stores equal points once, so the test looks at the requests.
    sent = []
    log_batch = resumed.server.client.log_batch
    monkeypatch.setattr(
        resumed.server.client,
        "log_batch",
        lambda run_id, metrics=(), **more: (sent.extend(metrics), log_batch(run_id, metrics=metrics, **more)),
    )
    resumed.log_step(4, {"loss/total": 0.0625, "time/step": 1.0})
    leave(resumed)
    assert history(resumed, "loss/total") == [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625)]
    assert history(resumed, "eval/test/accuracy") == [(1, 0.5)]
    assert {point.step for point in sent} == {4}


def test_a_request_that_arrived_in_part_is_completed(configure, start, monkeypatch):
    """Not every store writes a request as one transaction.

    The client is changed, because no real server fails at a chosen point.
    """
    tracker = start(configure())
    client = tracker.server.client
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


def test_the_newest_tables_that_the_tag_can_hold_are_in_view(configure, start, monkeypatch):
    # {"path": "samples/test-000000.json", "type": "table"} is 53 characters, a list of two 2 * 53 + 4.
    monkeypatch.setattr(run_writer, "TAG_VALUE_LIMIT", 110)
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
