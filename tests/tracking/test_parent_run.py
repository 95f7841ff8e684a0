"""The MLflow run of a sweep or an evaluation."""

import math
import os
import socket

import pytest

from orchestrator.errors import ConfigError
from orchestrator.storage import addresses
from orchestrator.tracking.parent_run import ParentRun
from tests.tracking.mlflow_view import artifact, leave, run_of


def test_a_sweeps_run_is_the_parent_of_its_trials(configure, start, runs, tmp_path, said):
    uri = f"sqlite:///{runs}/mlflow.db"
    sweep = ParentRun(
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
    assert artifact(sweep, "report.html", tmp_path / "sweep") == b"<html>"
    child = run_of(trial)
    assert (child.info.status, child.data.tags["laser.pruned"]) == ("KILLED", "yes")
    again = ParentRun(uri, "laser", "sweep", tmp_path / "sweep", {"sampler": "grid"}, {}, said.append)
    assert again.run_id == sweep.run_id
    assert again.server.client.get_run(again.run_id).info.status == "RUNNING"
    again.server.client.delete_run(again.run_id)
    assert (
        ParentRun(uri, "laser", "sweep", tmp_path / "sweep", {"sampler": "grid"}, {}, said.append).run_id
        != sweep.run_id
    )
    assert said == []


def test_a_sweep_needs_its_server_only_at_the_start(runs, tmp_path, said, monkeypatch, answering):
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9 cannot be reached: .*Connection refused"):
        ParentRun("http://127.0.0.1:9", "laser", "sweep", tmp_path, {}, {}, said.append)
    monkeypatch.setattr(addresses, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute.getsockname()[1]}")
        for uri, source in ((os.environ["MLFLOW_TRACKING_URI"], "MLFLOW_TRACKING_URI"), (
            f"http://localhost:{mute.getsockname()[1]}/mlflow", "tracking.uri",
        )):  # fmt: skip
            with pytest.raises(ConfigError, match=rf"cannot be reached: .*; the address is that of {source}"):
                ParentRun(uri, "laser", "sweep", tmp_path, {}, {}, said.append)
    answering.status = 401
    with pytest.raises(ConfigError, match=r"refused the sweep: .*401"):
        ParentRun(
            f"http://127.0.0.1:{answering.server_port}", "laser", "sweep", tmp_path, {}, {}, said.append
        )
    monkeypatch.setattr("orchestrator.tracking.parent_run.time.sleep", lambda seconds: None)
    sweep = ParentRun(f"sqlite:///{runs}/mlflow.db", "laser", "sweep", tmp_path, {}, {}, said.append)
    failures = [ConnectionError("gone")] * 3

    def gone(*arguments, **more):
        if failures:
            raise failures.pop()

    monkeypatch.setattr(sweep.server.client, "log_batch", gone)
    sweep.log({"best/accuracy": 0.5})
    assert (failures, said) == ([], []), "after three failures it arrived"
    failures += [ConnectionError("gone")] * 4
    sweep.log({"best/accuracy": 0.5})
    assert said == [f"MLflow at sqlite:///{runs}/mlflow.db does not have the sweep's metrics: gone"]
