"""Workers that are stopped, as a deadlock or a stuck device stops them: noticed, named and replaced.

And a run in which everything is merely slow. Real vLLM, DeepSpeed and Ray.
"""

import json
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

pytestmark = pytest.mark.long

STEPS = 8
DEADLINES = {"deadline_s": 10, "first_deadline_s": 90}


@pytest.fixture
def config(task: Path, tmp_path: Path) -> Path:
    tree = {
        "run": {"name": "hangs", "dir": str(tmp_path), "steps": STEPS, "save_every": 1},
        "model": {"path": "experiments/quickstart/base"},
        "data": {"train": str(task / "train.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4,
            "prompts_per_step": 4,
            "max_prompt_tokens": 64,
            "max_response_tokens": 64,
            "cpus": 0.5,
        },
        "verification": {"cpus": 0.25},
        "learning": {"num_ranks": 2, "cpus_per_rank": 0.5, "lr": 1e-4, "tokens_per_micro_batch": 1024},
        "loss": {"c_ref": -20.0},
        "self_reward": {"token": "<|self_reward|>"},
        "faults": DEADLINES,
    }
    path = tmp_path / "hangs.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def actors(process: subprocess.Popen, name: str) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any(name in part for part in child.cmdline())
    ]


def test_a_stopped_engine_and_a_stopped_rank_are_named_and_replaced(laser, config: Path) -> None:
    folder = config.parent / "hangs"
    with laser.started("train", str(config)) as process:
        for step, name in ((3, "ray::RolloutWorker"), (5, "ray::LearnerRank")):
            laser.wait_for(folder / "checkpoints" / f"step-{step:06d}", process)
            stopped = actors(process, name)[-1]
            stopped.suspend()
        stdout, _ = process.communicate(timeout=400)
    assert process.returncode == 0, stdout
    assert json.loads((folder / "summary.json").read_text())["steps"] == STEPS
    log = " ".join((folder / "run.log").read_text().split())
    assert "rollout worker 0 made no progress for" in log
    assert "learner rank" in log
    assert log.count("was in state T (stopped)") == 2
    stacks = [path.read_text() for path in sorted((folder / "stacks").iterdir())]
    assert len(stacks) == 2
    assert all("MainThread" in text for text in stacks)
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE


def test_while_everything_is_merely_slow_nothing_is_replaced(laser, config: Path) -> None:
    """Each process of the run stands still for nine tenths of its time, each at another time."""
    folder = config.parent / "hangs"
    ended = threading.Event()

    def hold_up(process: subprocess.Popen) -> None:
        dice = random.Random(0)
        resumes: dict[psutil.Process, float] = {}
        while not ended.wait(0.05):
            for child in psutil.Process(process.pid).children(recursive=True):
                try:
                    if child in resumes and time.monotonic() >= resumes[child]:
                        child.send_signal(signal.SIGCONT)
                        del resumes[child]
                    elif child not in resumes and dice.random() < 0.5:
                        child.send_signal(signal.SIGSTOP)
                        resumes[child] = time.monotonic() + 0.9 * dice.random() * 2
                except psutil.NoSuchProcess:
                    resumes.pop(child, None)
        for child in resumes:
            child.send_signal(signal.SIGCONT)

    with laser.started("train", str(config), "run.steps=4") as process:
        laser.wait_for(folder / "checkpoints" / "step-000002", process)
        slow = threading.Thread(target=hold_up, args=(process,), daemon=True)
        slow.start()
        try:
            stdout, _ = process.communicate(timeout=500)
        finally:
            ended.set()
            slow.join(10)
    assert process.returncode == 0, stdout
    assert "is replaced" not in (folder / "run.log").read_text()
    assert "made no progress" not in (folder / "run.log").read_text()
