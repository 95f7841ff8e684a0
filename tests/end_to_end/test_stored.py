"""A run that an earlier version began resumes: `tests/stored/run` holds two steps of it, written at version 0.1.0."""

import json
import shutil
import subprocess
from pathlib import Path

STORED = Path(__file__).parents[1] / "stored"


def test_a_run_of_an_earlier_version_resumes(laser, tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "tests" / "stored", symlinks=True)  # its settings name these paths
    run = tmp_path / "tests" / "stored" / "run"
    before = json.loads((run / "checkpoints" / "step-000002" / "state.json").read_text())
    ended = subprocess.run(
        [laser.program, "train", "tests/stored/run.yaml", "run.steps=3"],
        cwd=tmp_path, env=laser.environment, capture_output=True, text=True, timeout=480, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "continuing from" in ended.stdout
    after = json.loads((run / "checkpoints" / "step-000003" / "state.json").read_text())
    assert after["c_ref"] == before["c_ref"], "measured once, on the initial model"
    assert (before["prompt_order"]["position"], after["prompt_order"]["position"]) == (8, 12), (
        "the next four problems"
    )
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    steps = [
        event["step"]
        for event in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if event["event"] == "step"
    ]
    assert steps == [1, 2, 3]


def test_other_settings_than_the_stored_ones_are_refused(laser, tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "tests" / "stored", symlinks=True)
    ended = subprocess.run(
        [laser.program, "train", "tests/stored/run.yaml", "run.steps=3", "learning.lr=0.1"],
        cwd=tmp_path, env=laser.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "learning.lr: 0.001 before, 0.1 now" in ended.stderr
