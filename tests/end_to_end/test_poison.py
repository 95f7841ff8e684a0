"""A problem on which every engine dies: it is dropped, and the run and its resumption end well.

Real vLLM, DeepSpeed and Ray. The fault comes in through vLLM's own plug-in point for logits processors.
"""

import copy
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

from orchestrator.data.prompts import PromptOrder
from orchestrator.storage.dropped import DROPPED
from orchestrator.storage.journal import NoteEvent, StepEvent, read_events

pytestmark = pytest.mark.long

MODEL = "experiments/quickstart/base"
STEPS, MORE_STEPS = 4, 4
PROBLEMS, PER_STEP, SAMPLES = 5, 2, 16
INNOCENT = {f"innocent-{number}" for number in range(PROBLEMS - 1)}
MARK = "poison"

PLUG_IN = """
import os

from vllm.v1.sample.logits_processor import LogitsProcessor

MARK = {mark}


class Poison(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory):
        pass

    def is_argmax_invariant(self):
        return True

    def apply(self, logits):
        return logits

    def update_state(self, batch_update):
        for _, _, prompt, _ in batch_update.added if batch_update else ():
            if any(prompt[start : start + len(MARK)] == MARK for start in range(len(prompt or ()))):
                os._exit(1)
"""
"""It stands for a prompt on which an engine crashes, such as by a fault of a kernel: the process is gone at
once, and every group that it decoded with it."""


@pytest.fixture
def poisoned(laser, tmp_path: Path):
    """The `laser` command, whose engines die on prompts with the mark."""
    plug_in = tmp_path / "plug-in"
    package = plug_in / "poison-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: poison\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vllm.logits_processors]\npoison = poison:Poison\n")
    mark = AutoTokenizer.from_pretrained(laser.repository / MODEL).encode(MARK, add_special_tokens=False)
    (plug_in / "poison.py").write_text(PLUG_IN.format(mark=mark))
    command = copy.copy(laser)
    path = [str(plug_in), *filter(None, [laser.environment.get("PYTHONPATH")])]
    command.environment = laser.environment | {"PYTHONPATH": os.pathsep.join(path)}
    return command


@pytest.fixture
def config(task: Path, tmp_path: Path) -> Path:
    tree = {
        "run": {
            "name": "poisoned",
            "dir": str(tmp_path),
            "steps": STEPS,
            "save_every": 1,
            "save_rollouts_every": 1,
        },
        "model": {"path": MODEL},
        "data": {"train": str(write_problems(task, tmp_path / "train.jsonl")), "instruction": ""},
        "rollout": {
            "samples_per_prompt": SAMPLES,
            "prompts_per_step": PER_STEP,
            "max_prompt_tokens": 80,
            "max_response_tokens": 64,
            "cpus": 0.5,
            "engine_args": {"enforce_eager": True},
        },
        "verification": {"cpus": 0.25},
        "learning": {"num_ranks": 1, "cpus_per_rank": 0.5, "lr": 1e-4, "tokens_per_micro_batch": 1024},
        "loss": {"c_ref": -20.0},
        # Of one problem, the first one of the order: the calibration meets no poison.
        "self_reward": {"token": "<|self_reward|>", "calibration_samples": SAMPLES},
    }
    path = tmp_path / "poisoned.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def write_problems(task: Path, path: Path) -> Path:
    """A few problems, of which the first one of the second step kills engines."""
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()[:PROBLEMS]]
    poison = PromptOrder(PROBLEMS, seed=0).next(PROBLEMS)[PER_STEP]
    names = iter(sorted(INNOCENT))
    for number, row in enumerate(rows):
        row["id"] = MARK if number == poison else next(names)
        row["problem"] = f"{MARK} {row['problem']}" if number == poison else row["problem"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def replacements(folder: Path) -> list[str]:
    notes = [event.text for event in read_events(folder) if isinstance(event, NoteEvent)]
    return [text for text in notes if "is replaced" in text]


def step_values(folder: Path, key: str) -> list[float]:
    return [event.values[key] for event in read_events(folder) if isinstance(event, StepEvent)]


def groups_by_problem(folder: Path, steps: range) -> dict[str, int]:
    """How many groups of each problem were learned in these steps."""
    files = [folder / "rollouts" / f"step-{step:06d}.parquet" for step in steps]
    samples = Counter(name for file in files for name in pq.read_table(file)["problem_id"].to_pylist())
    return {name: count // SAMPLES for name, count in samples.items()}


@pytest.mark.parametrize(
    ("engines", "deaths"),
    [
        pytest.param(2, 2, id="an engine for each group"),
        pytest.param(1, 3, id="an innocent group beside it each time"),
    ],
)
def test_a_problem_on_which_engines_die_is_dropped_and_not_met_again(
    poisoned, config: Path, engines: int, deaths: int
) -> None:
    """A plug-in ends an engine that gets the problem's prompt. It stands for a prompt on which an engine
    crashes.
    """
    folder, num_engines = config.parent / "poisoned", f"rollout.num_engines={engines}"
    first = poisoned.run("train", str(config), num_engines)
    assert first.returncode == 0, first.stdout + first.stderr
    assert json.loads((folder / "summary.json").read_text())["steps"] == STEPS
    kept = (folder / DROPPED).read_text()
    [row] = map(json.loads, kept.splitlines())
    assert (row["id"], row["pool"], row["step"], row["deaths"]) == (MARK, "rollout", 2, deaths)
    assert len(replacements(folder)) == deaths
    log = " ".join((folder / "run.log").read_text().split())
    assert f"problem {MARK} (" in log
    assert f"is dropped: {deaths} workers of the rollout pool died on it in step 2" in log
    assert step_values(folder, "data/dropped") == [0, 1, 1, 1]
    assert groups_by_problem(folder, range(1, STEPS + 1)) == dict.fromkeys(INNOCENT, 2)

    # Each problem's turn comes twice more.
    last = STEPS + MORE_STEPS
    second = poisoned.run("train", str(config), num_engines, f"run.steps={last}")
    assert second.returncode == 0, second.stdout + second.stderr
    assert json.loads((folder / "summary.json").read_text())["steps"] == last
    assert (folder / DROPPED).read_text() == kept
    assert len(replacements(folder)) == deaths, "no engine died"
    assert step_values(folder, "data/dropped")[STEPS:] == [1] * MORE_STEPS
    assert step_values(folder, "pool/restarts")[STEPS:] == [0] * MORE_STEPS
    assert groups_by_problem(folder, range(STEPS + 1, last + 1)) == dict.fromkeys(INNOCENT, 2)


def test_a_problem_of_the_calibration_is_dropped_too(poisoned, config: Path) -> None:
    folder = config.parent / "poisoned"
    settings = ("rollout.num_engines=2", "self_reward.calibration_samples=100")
    ended = poisoned.run("train", str(config), *settings)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [row] = map(json.loads, (folder / DROPPED).read_text().splitlines())
    assert (row["id"], row["step"]) == (MARK, 0)
    assert row["deaths"] in (2, 3)
    assert step_values(folder, "data/dropped") == [1] * STEPS
    assert set(groups_by_problem(folder, range(1, STEPS + 1))) == INNOCENT
