"""`laser train` with checkpoints on an S3 server: after the loss of its folder, and without a shared one."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from orchestrator.storage.journal import StepEvent, read_events
from tests.s3 import KEYS, client_of

URL = "s3://laser/runs"


@pytest.fixture
def variables(s3_address: str) -> dict[str, str]:
    """Environment variables of a process that uses the S3 server."""
    return KEYS | {"AWS_ENDPOINT_URL": s3_address}


def stored(address: str, run: str) -> list[str]:
    """Files of a run on the server."""
    pages = (
        client_of(address).get_paginator("list_objects_v2").paginate(Bucket="laser", Prefix=f"runs/{run}/")
    )
    return [
        item["Key"].removeprefix(f"runs/{run}/")
        for page in pages
        for item in page.get("Contents", ())
        if item["Size"]
    ]


@pytest.fixture
def config(task: Path, tmp_path: Path) -> Path:
    tree = {
        "run": {"name": "tiny", "dir": str(tmp_path / "runs"), "steps": 4, "save_every": 2, "remote": URL},
        "model": {"path": str(Path("experiments/quickstart/base").resolve())},
        "data": {"train": str(task / "train.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4, "prompts_per_step": 4, "max_prompt_tokens": 80,
            "max_response_tokens": 40, "cpus": 0.5, "max_staleness": 1,
            "engine_args": {"enforce_eager": True},
        },
        "verification": {"cpus": 0.25},
        "learning": {"num_ranks": 2, "cpus_per_rank": 0.25, "lr": 1e-3, "tokens_per_micro_batch": 1024},
        "loss": {"importance_cap": 2.0},
        "self_reward": {"token": "<|self_reward|>", "calibration_samples": 50},
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_killed_run_whose_folder_is_lost_resumes_from_the_url(
    laser, config: Path, s3_address: str, variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(laser, "environment", laser.environment | variables)
    folder = config.parent / "runs" / "tiny"
    with laser.started("train", str(config)) as process:
        laser.wait_for(folder / "checkpoints" / "step-000002", process)
    killed_at = json.loads((folder / "checkpoints" / "step-000002" / "state.json").read_text())
    assert not (folder / "checkpoints" / "step-000004" / "state.json").exists()
    shutil.rmtree(folder)

    resumed = laser.run("train", str(config))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "continuing from" in resumed.stdout
    steps = [event.step for event in read_events(folder) if isinstance(event, StepEvent)]
    assert steps == [1, 2, 3, 4]
    ages = [
        event.values["rollout/staleness_max"] for event in read_events(folder) if isinstance(event, StepEvent)
    ]
    assert max(ages) == 1, "the engines sample one batch ahead"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["c_ref"]) == (4, killed_at["c_ref"])
    assert summary["mlflow_run_id"] == killed_at["mlflow_run_id"]
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    assert [point.step for point in client.get_metric_history(summary["mlflow_run_id"], "loss/total")] == [
        1,
        2,
        3,
        4,
    ]

    there = stored(s3_address, "tiny")
    here = [
        str(path.relative_to(folder))
        for path in folder.glob("checkpoints/step-000004/**/*")
        if path.is_file()
    ]
    assert sorted(path for path in there if "step-000004" in path) == sorted(here)
    assert "checkpoints/step-000002/learner/random_state_1.pt" in there
    assert {"config.yaml", "metrics.jsonl", "summary.json", "mlflow_run_id"} <= set(there)


@pytest.mark.long
def test_nodes_that_share_no_folder_need_none(
    laser, cluster, config: Path, s3_address: str, variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = config.parent / "runs" / "tiny"
    folder.parent.mkdir()
    own_disk = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{folder.parent}" && exec "$@"', "sh")
    if subprocess.run([*own_disk, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a private mount needs root: a run on nodes that share no folder was not tried")
    monkeypatch.setattr(cluster, "environment", cluster.environment | variables)
    monkeypatch.setattr(laser, "environment", cluster.environment | {"RAY_ADDRESS": cluster.address})
    settings = ("run.name=apart", "learning.resources={disk: 1}")
    folder = folder.with_name("apart")

    nodes = [cluster.add_node(1, {"disk": 1}, command=own_disk) for _ in range(2)]
    done = laser.run("train", str(config), *settings, "run.steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    checkpoint = folder / "checkpoints" / "step-000002"
    assert not (checkpoint / "learner").exists(), "each rank writes to its own disk"
    assert {"config.json", "self_reward.json", "model.safetensors"} <= set(os.listdir(folder / "export"))
    for node in nodes:
        own = Path(f"/proc/{node.pid}/root{folder}/checkpoints")
        assert [path.name for path in own.rglob("*") if path.is_file()] == [], (
            "files at the URL are not kept here too"
        )
        cluster.kill_node(node)

    for _ in range(2):
        cluster.add_node(1, {"disk": 1}, command=own_disk)
    done = laser.run("train", str(config), *settings, "run.steps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing from" in done.stdout
    assert [event.step for event in read_events(folder) if isinstance(event, StepEvent)] == [1, 2, 3]
    assert [path for path in stored(s3_address, "apart") if path.endswith("_1.pt")] == [
        "checkpoints/step-000002/learner/random_state_1.pt",
        "checkpoints/step-000003/learner/random_state_1.pt",
    ]
