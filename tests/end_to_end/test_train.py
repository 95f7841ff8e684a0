"""`laser train` as a user runs it, in a process of its own: real vLLM, math-verify, DeepSpeed and MLflow,
killed and resumed.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.messages.trajectories import read_groups
from orchestrator.storage.journal import NoteEvent, read_events

STEPS = 6
STEP_METRICS = {
    "train/accuracy",
    "train/reward",
    "reward/answer",
    "reward/form",
    "train/response_tokens",
    "train/finished_share",
    "self_reward/f1",
    "loss/policy",
    "loss/self_reward",
    "loss/total",
    "policy/kl",
    "policy/clip_share",
    "policy/entropy",
    "policy/mismatch_kl",
    "policy/grad_norm",
    "time/step",
    "time/wait",
    "time/rollout",
    "time/verify",
    "time/learn",
    "time/sync",
    "throughput/samples_per_s",
    "throughput/tokens_per_s",
    "rollout/staleness",
    "rollout/staleness_max",
    "verify/timeouts",
    "verify/memory",
    "verify/errors",
    "pool/restarts",
}

GRADED = {
    "name": "weighted",
    "parts": {
        "answer": {"verifier": "math", "weight": 3},
        "form": {"verifier": {"name": "pattern", "pattern": r"\\boxed\{[^{}]+\}"}},
    },
}
"""A quarter for the right form, and the rest for the right answer."""

# Not defined in a step without a finished solution of that class.
SCORE_METRICS = {"self_reward/accuracy_wrong", "self_reward/score_wrong"}


@pytest.fixture(scope="module")
def config(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    tree = {
        "run": {
            "name": "tiny",
            "dir": str(runs),
            "steps": STEPS,
            "save_every": 1,
            "save_rollouts_every": 2,
            "eval_every": 4,
        },
        "model": {"path": "experiments/quickstart/base"},
        "data": {"train": str(task / "train.jsonl"), "eval": str(task / "test.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4,
            "prompts_per_step": 4,
            "max_prompt_tokens": 80,
            "max_response_tokens": 40,
            "cpus": 0.5,
            "engine_args": {"enforce_eager": True},
        },
        "verification": {"cpus": 0.25, "verifier": GRADED},
        "learning": {
            "num_ranks": 2,
            "cpus_per_rank": 0.25,
            "lr": 1e-3,
            "tokens_per_micro_batch": 1024,
            "mini_batches": 2,
        },
        "loss": {
            "alpha": 1.0,
            "c_ref": "calibrate",
            "reasoning_warmup_steps": 1,
            "self_reward_warmup_steps": 1,
        },
        "self_reward": {"token": "<|self_reward|>", "calibration_samples": 100},
        "evaluation": {"samples_per_problem": 2},
    }
    path = runs / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def series(client: MlflowClient, run_id: str, key: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, key)]


def test_a_killed_run_continues_outlives_its_actors_and_says_when_it_is_finished(laser, config: Path) -> None:
    elsewhere, folder = config.parent.with_name("elsewhere"), config.parent / "tiny"
    with laser.started("train", str(config), f"run.dir={elsewhere}", "learning.num_ranks=1") as process:
        laser.wait_for(elsewhere / "tiny" / "checkpoints" / "step-000002", process)
    for path in elsewhere.iterdir():
        path.rename(config.parent / path.name)
    assert not (folder / "summary.json").exists()
    killed_at = json.loads((folder / "checkpoints" / "step-000002" / "state.json").read_text())

    damaged = folder / "checkpoints" / "step-000002"
    shard = next(damaged.glob("learner/zero3/zero_pp_rank_0_*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)

    # The folder has moved, and another number of ranks goes on. This time a learner rank is killed, and then
    # the engine: both are replaced.
    with laser.started("train", str(config)) as resumed:
        laser.wait_for(folder / "checkpoints" / "step-000003", resumed)
        laser.kill_actor(resumed, "ray::LearnerRank")
        laser.wait_for(folder / "checkpoints" / "step-000004", resumed)
        laser.kill_actor(resumed, "ray::RolloutWorker")
        stdout, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, stdout
    assert f"{damaged} is damaged: learner/zero3/{shard.name} has other content" in " ".join(stdout.split())
    assert f"continuing from {damaged.with_name('step-000001')}, which 1 rank(s) saved, with 2" in " ".join(
        stdout.split()
    )
    notes = [event for event in read_events(folder) if isinstance(event, NoteEvent)]
    assert notes[0].step == 1
    assert shard.name in notes[0].text
    assert any("restarting the ranks" in note.text and "its process" in note.text for note in notes[1:])
    assert any("rollout worker 0 is replaced" in note.text for note in notes[1:])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["mlflow_run_id"] == killed_at["mlflow_run_id"], "a resumed run goes on in its MLflow run"
    assert summary["problems"] == 8
    assert summary["c_ref"] == killed_at["c_ref"] < -10, "measured once, then kept"
    assert set(summary["base"]) == set(summary["trained"])

    client = MlflowClient(f"sqlite:///{config.parent / 'mlflow.db'}")
    for key in STEP_METRICS:
        assert series(client, summary["mlflow_run_id"], key) == list(range(1, STEPS + 1)), key
    for key in SCORE_METRICS:
        steps = series(client, summary["mlflow_run_id"], key)
        assert steps, f"{key} was never logged"
        assert steps == sorted(set(steps)), f"{key}: one value a step"
    assert series(client, summary["mlflow_run_id"], "eval/test/accuracy") == [0, 4, STEPS]
    stored = client.get_run(summary["mlflow_run_id"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["loss.beta_v"] == "0.1"
    mismatch = client.get_metric_history(summary["mlflow_run_id"], "policy/mismatch_max")
    assert max(point.value for point in mismatch) < 1e-3, (
        "engine and learner have the same weights in every step"
    )
    z_mismatch = client.get_metric_history(summary["mlflow_run_id"], "self_reward/mismatch_max")
    assert max(point.value for point in z_mismatch) < 1e-3

    assert laser.leaks(config.parent) == []
    assert not any(secret in stdout for secret in laser.planted.values())

    restarts = client.get_metric_history(summary["mlflow_run_id"], "pool/restarts")
    assert restarts[-1].value == 2, "rank and engine were replaced, and the run ended with all its steps"

    problems = [
        pq.read_table(path).column("problem_id").to_pylist()
        for path in sorted((folder / "rollouts").glob("*.parquet"))
    ]
    assert len(problems) == STEPS // 2
    assert not set(problems[0]) & set(problems[1]), "the resumed run takes the next problems in order"
    groups, table = read_groups(folder / "rollouts" / f"step-{STEPS:06d}.parquet")
    assert [len(group) for group in groups] == [4] * 4
    assert {version for group in groups for version in group.versions.tolist()} == {STEPS - 1}, (
        "on-policy: step n samples with version n - 1"
    )
    assert set(table.column("status").to_pylist()) <= {"correct", "wrong", "no_answer", "format"}
    assert "correct" in table.column("status").to_pylist()
    for status, reward in zip(
        *(table.column(name).to_pylist() for name in ("status", "reward")), strict=True
    ):
        assert reward in ((1.0,) if status == "correct" else (0.0, 0.25)), "a graded reward and its status"
    finished = np.array(table.column("finished").to_pylist())
    assert np.isnan(np.array(table.column("score").to_pylist(), dtype=float)[~finished]).all()

    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000005", "step-000006"]
    replayed = laser.run(
        "replay",
        str(folder / "rollouts" / "step-000006.parquet"),
        str(config),
        "learning.num_ranks=1",
        "learning.mini_batches=1",
        f"model.path={folder / 'checkpoints' / 'step-000005' / 'export'}",
    )
    assert replayed.returncode == 0, replayed.stderr
    mismatch = float(re.search(r"log-prob ([0-9.]+)", replayed.stdout)[1])
    assert mismatch < 1e-3, (
        "the exported policy of step 5 gives the stored tokens of step 6 the log-probs they were sampled with"
    )
    card = json.loads((folder / "export" / "self_reward.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "export")
    assert tokenizer.convert_tokens_to_ids(card["token"]) == card["token_id"]
    assert AutoModelForCausalLM.from_pretrained(folder / "export").num_parameters() > 1e5

    again = laser.run("train", str(config))
    assert again.returncode == 0, again.stderr
    assert "finished" in again.stdout
    other = laser.run("train", str(config), "loss.alpha=0.5")
    assert other.returncode == 2
    assert "loss.alpha: 1.0 before, 0.5 now" in other.stderr
    assert "Traceback" not in other.stderr
