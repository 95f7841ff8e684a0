"""Real runs whose engines sample ahead of the ranks, while workers and drivers die."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.data.problems import load_problems
from orchestrator.data.prompts import PromptOrder
from orchestrator.storage.journal import StepEvent, read_events

PROMPTS, AHEAD = 4, 2


@pytest.fixture
def config(task: Path, tmp_path: Path) -> Path:
    tree = {
        "run": {"name": "ahead", "dir": str(tmp_path), "steps": 8, "save_every": 1, "save_rollouts_every": 1},
        "model": {"path": "experiments/quickstart/base"},
        "data": {"train": str(task / "train.jsonl"), "eval": str(task / "test.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4, "prompts_per_step": PROMPTS, "max_prompt_tokens": 80,
            "max_response_tokens": 40, "cpus": 0.5, "max_staleness": AHEAD,
            "engine_args": {"enforce_eager": True},
        },
        "verification": {"cpus": 0.25},
        "learning": {"num_ranks": 2, "cpus_per_rank": 0.25, "lr": 1e-3, "tokens_per_micro_batch": 1024},
        "loss": {"importance_cap": 2.0},
        "self_reward": {"token": "<|self_reward|>", "calibration_samples": 50},
        "evaluation": {"samples_per_problem": 2},
    }  # fmt: skip
    path = tmp_path / "ahead.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.long
def test_a_run_ahead_outlives_each_of_its_parts_and_skips_no_problem(laser, task: Path, config: Path) -> None:
    folder = config.parent / "ahead"
    with laser.started("train", str(config)) as process:
        laser.wait_for(folder / "checkpoints" / "step-000002", process)
    with laser.started("train", str(config), "run.eval_every=3") as resumed:
        for step, worker in ((3, "RolloutWorker"), (4, "VerificationWorker"), (5, "LearnerRank")):
            laser.wait_for(folder / "checkpoints" / f"step-{step:06d}", resumed)
            laser.kill_actor(resumed, f"ray::{worker}")
        stdout, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, stdout

    steps = [event for event in read_events(folder) if isinstance(event, StepEvent)]
    assert [event.step for event in steps] == list(range(1, 9))
    ages = [event.values["rollout/staleness_max"] for event in steps]
    assert max(ages) > 0, "batches are sampled ahead"
    assert max(ages) <= AHEAD
    drawn = []
    for path in sorted((folder / "rollouts").glob("*.parquet")):
        drawn += dict.fromkeys(pq.read_table(path).column("problem_id").to_pylist())
    problems = load_problems(str(task / "train.jsonl"), "problem", "answer")
    order = PromptOrder(len(problems), seed=0).next(PROMPTS * 8)
    assert drawn == [problems[index].id for index in order], "each problem once, in the order of the steps"
