"""`learning.stream` in a whole run: the same samples, the same update."""

import json
from pathlib import Path

import pytest
import yaml

from orchestrator.storage.journal import StepEvent, read_events


@pytest.mark.long
def test_a_streamed_run_begins_like_one_that_learns_after_generation(
    laser, task: Path, tmp_path: Path
) -> None:
    tree = {
        "run": {"name": "plain", "dir": str(tmp_path), "steps": 1},
        "model": {"path": "experiments/quickstart/base"},
        "data": {"train": str(task / "train.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4,
            "prompts_per_step": 12,
            "max_prompt_tokens": 80,
            "max_response_tokens": 60,
            "cpus": 0.5,
            "engine_args": {"enforce_eager": True, "max_num_seqs": 8},
        },
        "verification": {"cpus": 0.25},
        "learning": {"num_ranks": 2, "cpus_per_rank": 0.25, "lr": 1e-3, "tokens_per_micro_batch": 512},
        "loss": {"alpha": 1.0, "c_ref": -15.0, "self_reward_warmup_steps": 0},
        "self_reward": {"token": "<|self_reward|>", "calibration_samples": 16},
        "evaluation": {"samples_per_problem": 1, "max_problems": 1},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    steps = {}
    for name, stream in (("plain", "false"), ("streamed", "true")):
        done = laser.run("train", str(config), f"run.name={name}", f"learning.stream={stream}", timeout_s=240)
        assert done.returncode == 0, done.stdout
        events = [each for each in read_events(tmp_path / name) if isinstance(each, StepEvent)]
        steps[name] = [each.values for each in events]
    first, streamed = steps["plain"][0], steps["streamed"][0]
    assert streamed["train/response_tokens"] == first["train/response_tokens"], "the same samples"
    for metric in ("loss/policy", "loss/self_reward", "loss/total", "policy/grad_norm"):
        assert streamed[metric] == pytest.approx(first[metric], rel=1e-3, abs=1e-5), metric
    assert first["time/streamed"] == 0
    assert all(metrics["time/streamed"] > 0 for metrics in steps["streamed"])
    assert json.loads((tmp_path / "streamed" / "summary.json").read_text())
