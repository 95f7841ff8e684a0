"""A run in which numbers are not finite: single steps are skipped, and too many in a row end it as failed."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.messages.trajectories import read_groups
from orchestrator.storage.checkpoints import Checkpoints
from orchestrator.storage.journal import NoteEvent, StepEvent, read_events

STORED = Path(__file__).parents[1] / "stored"

# The ranks are real but for what they are given: no setting and no data makes a single step's advantages NaN.
POISONED = """
import sys
from dataclasses import replace
from functools import partialmethod

import numpy as np

from actors.learning import LearnerRank
from orchestrator.cli import main
from orchestrator.pools.training import Pools, WorkerClasses


class PoisonedRank(LearnerRank):
    def step(self, batch):
        if batch.step in (2, 4, 5, 6):
            batch = replace(batch, advantages=np.full_like(batch.advantages, np.nan))
        return super().step(batch)


Pools.__init__ = partialmethod(Pools.__init__, workers=WorkerClasses(rank=PoisonedRank))
sys.exit(main(sys.argv[1:]))
"""


def test_a_poisoned_step_is_skipped_and_three_in_a_row_end_the_run_as_failed(laser, tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "tests" / "stored", symlinks=True)
    folder = tmp_path / "tests" / "stored" / "run"
    shutil.rmtree(folder)
    settings = ("run.steps=8", "run.save_every=1", "run.eval_every=0", "run.keep_checkpoints=2")
    ended = subprocess.run(
        [sys.executable, "-c", POISONED, "train", "tests/stored/run.yaml", *settings],
        cwd=tmp_path, env=laser.environment, capture_output=True, text=True, timeout=480, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stdout + ended.stderr
    error = ended.stderr.strip().splitlines()[-1]
    assert error.startswith("laser train: 3 steps in a row, up to step 6, had no update: the loss")
    assert "The likely cause is a sample of the kept batches, learning.dtype=float32" in error
    assert "The last healthy checkpoint is tests/stored/run/checkpoints/step-000003." in error
    assert "Traceback" not in ended.stderr
    assert "loss nan" in (folder / "run.log").read_text()

    steps = {event.step: event.values for event in read_events(folder) if isinstance(event, StepEvent)}
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    assert [steps[step]["learn/skipped_steps"] > 0 for step in sorted(steps)] == [
        False, True, False, True, True, True
    ]  # fmt: skip
    assert math.isnan(steps[2]["loss/total"])
    assert steps[2]["policy/grad_norm"] == math.inf
    assert math.isfinite(steps[3]["loss/total"])
    notes = [event for event in read_events(folder) if isinstance(event, NoteEvent)]
    assert [note.step for note in notes] == [2, 4, 5, 6]
    for note in notes:
        path = f"rollouts/step-{note.step:06d}.parquet"
        assert path in note.text
        assert len(read_groups(folder / path)[0]) == 4
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == [
        "step-000001", "step-000003"
    ]  # fmt: skip
    assert Checkpoints(folder, keep=2).newest()[1].step == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("failed", 6)
    assert summary["error"] in ended.stderr

    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FAILED"
    assert "after step 2: step 2: 2 update(s) skipped" in run.data.tags["mlflow.note.content"]
    loss = client.get_metric_history(summary["mlflow_run_id"], "loss/total")
    assert [math.isnan(point.value) for point in sorted(loss, key=lambda point: point.step)] == [
        False, True, False, True, True, True
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("lr", "ending"), [
    ("1e30", "after the update the weights are not finite, or too large to be squared"),
    ("1e10", "3 steps in a row, up to step 3, had no update: the gradients are not finite"),
])  # fmt: skip
def test_a_learning_rate_that_ruins_the_weights_ends_the_run(laser, tmp_path: Path, lr, ending) -> None:
    shutil.copytree(STORED, tmp_path / "tests" / "stored", symlinks=True)
    folder = tmp_path / "tests" / "stored" / "run"
    shutil.rmtree(folder)
    ended = subprocess.run(
        [laser.program, "train", "tests/stored/run.yaml", f"learning.lr={lr}", "run.steps=8"],
        cwd=tmp_path, env=laser.environment, capture_output=True, text=True, timeout=480, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert ending in ended.stderr
    assert f"The likely cause is learning.lr={float(lr):g}: lower it to at most 0.01" in ended.stderr
    assert not list((folder / "checkpoints").glob("step-*"))
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
