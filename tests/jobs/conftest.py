"""A folder to submit jobs from."""

import shutil
from pathlib import Path

import pytest

from tests.jobs.folders import write

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to submit from: a run with relative paths, a sweep of it, and an evaluation."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no_token"))
    shutil.copytree(BASE, tmp_path / "models" / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "models" / "base" / ".gitignore").write_text("*")
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "test.jsonl").write_text("{}\n")
    run = {
        "run": {"name": "trial", "steps": 3},
        "model": {"path": "models/base"},
        "data": {"train": "train.jsonl", "eval": "test.jsonl"},
        "self_reward": {"token": "<|self_reward|>"},
    }
    write("run.yaml", run)
    write(
        "sweep.yaml", {"name": "search", "base": "run.yaml", "space": {"learning.lr": {"grid": [0.1, 0.2]}}}
    )
    write("eval.yaml", {"model": "trained", "data": ["test.jsonl:4", "math500"], "folder": "scores"})
    (tmp_path / "runs" / "trained" / "export").mkdir(parents=True)
    (tmp_path / "runs" / "trained" / "export" / "config.json").write_text("{}")
    return tmp_path
