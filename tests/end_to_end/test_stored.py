"""A run that an earlier version began resumes: `tests/stored/run` holds two steps of it, written at version
0.1.0.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

STORED = Path(__file__).parents[1] / "stored"

ANY_FOLDER = "-a %20b?c=1&d;#é'\"[1]"
"""A folder's name that means something else in URLs, shells and patterns of file names."""


RESUME = """
import json, sys
from orchestrator import load_config, train
from orchestrator.training.context import RunContext

reported = []
context = RunContext(in_trial=False, report=lambda step, figures: reported.append(step))
overrides = ["run.steps=3", f"run.dir={json.dumps(sys.argv[1])}"]
train(load_config("tests/stored/run.yaml", overrides), context=context)
print("reported", reported)
"""


def test_a_run_of_an_earlier_version_resumes_and_makes_up_a_due_evaluation(laser, tmp_path: Path) -> None:
    work = tmp_path / ANY_FOLDER
    shutil.copytree(STORED, work / "tests" / "stored", symlinks=True)  # its settings name these paths
    run = work / "tests" / "stored" / "run"
    before = json.loads((run / "checkpoints" / "step-000002" / "state.json").read_text())
    # As after a kill between the checkpoint of step 2 and the evaluation that follows it.
    events = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(events[:4]))
    (run / ".mlflow-sent").unlink()
    (run / "summary.json").unlink()
    ended = subprocess.run(
        [sys.executable, "-c", RESUME, str(work / "tests" / "stored")],
        cwd=work, env=laser.environment, capture_output=True, text=True, timeout=480, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "continuing from" in ended.stdout
    assert "reported [2]" in ended.stdout
    after = json.loads((run / "checkpoints" / "step-000003" / "state.json").read_text())
    assert after["c_ref"] == before["c_ref"], "measured once, on the initial model"
    positions = [state["prompt_order"]["position"] for state in (before, after)]
    assert positions == [8, 12], "the next four problems"
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    log = (run / "run.log").read_text()
    assert "continuing from" in log
    assert "step 3/3" in log
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3]
    assert [event["step"] for event in events if event["event"] == "evaluation"] == [0, 2, 3]
    assert sorted(path.name for path in work.iterdir()) == ["tests"]
    assert (work / "tests" / "stored" / "mlflow.db").is_file()
    assert (run / ".mlflow-sent").read_text().strip() == str(len(events)), "MLflow has all events"


def test_other_settings_than_the_stored_ones_are_refused(laser, tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "tests" / "stored", symlinks=True)
    ended = subprocess.run(
        [laser.program, "train", "tests/stored/run.yaml", "run.steps=3", "learning.lr=0.1"],
        cwd=tmp_path, env=laser.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "learning.lr: 0.001 before, 0.1 now" in ended.stderr
