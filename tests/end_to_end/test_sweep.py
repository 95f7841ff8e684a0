"""`laser sweep` on the real stack: trunk, kills, failing trial, MLflow, registry, report, pruning, Optuna."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from orchestrator.algorithm.self_reward import self_reward_score
from orchestrator.config.sweep import load_sweep
from orchestrator.config.training import RunConfig, load_config
from orchestrator.data.tokens import load_tokens
from orchestrator.errors import RunError
from orchestrator.models.registry import fetch_model
from orchestrator.pools.ranks import learner_settings, start_ranks
from orchestrator.storage.journal import StepEvent, read_events
from orchestrator.sweeps.sweep import sweep
from orchestrator.training.replay import load_batch
from orchestrator.training.train_batch import estimate_advantages, make_train_batch

STEPS, WARM_UP = 4, 2
BRANCHED = "beta_v-0.2_alpha-2_seed-0"
REFUSED = "beta_v-0.04_alpha-2_seed-0"


def write_sweep(path: Path, task: Path, **settings: Any) -> Path:
    base = {
        "run": {
            "name": "tiny", "dir": str(path.parent / "runs"), "steps": STEPS,
            "save_every": 1, "eval_every": 2,
        },
        "model": {"path": "experiments/quickstart/base"},
        "data": {"train": str(task / "train.jsonl"), "eval": str(task / "test.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4, "prompts_per_step": 4, "max_prompt_tokens": 80,
            "max_response_tokens": 40, "cpus": 0.25, "engine_args": {"enforce_eager": True},
        },
        "verification": {"cpus": 0.25},
        "learning": {
            "num_ranks": 2, "cpus_per_rank": 0.25, "lr": 1e-3,
            "tokens_per_micro_batch": 1024, "mini_batches": 2,
        },
        "loss": {"alpha": 1.0, "reasoning_warmup_steps": WARM_UP, "self_reward_warmup_steps": 1},
        "self_reward": {"token": "<|self_reward|>", "calibration_samples": 64},
        "evaluation": {"samples_per_problem": 2},
    }  # fmt: skip
    (path.parent / "base.yaml").write_text(yaml.safe_dump(base))
    path.write_text(
        yaml.safe_dump(
            {"name": path.stem, "base": str(path.parent / "base.yaml"), **settings}, sort_keys=False
        )
    )
    return path


@pytest.fixture(scope="module")
def swept(laser, task: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep that is killed after its first finished trial, resumed, and then loses a trial's driver.

    Returns its folder, and the output of the second command.
    """
    config = write_sweep(
        tmp_path_factory.mktemp("sweep") / "tiny-sweep.yaml",
        task,
        space={"loss.beta_v": {"grid": [0.1, 0.2, 0.04]}, "loss.alpha": {"grid": [0.5, 2.0]}},
        where=["loss.alpha > 1"],
        settings={"run": {"save_rollouts_every": 1}},
        retries=1,
    )
    folder = config.parent / "runs" / "tiny-sweep"
    trials = folder / "trials"
    with laser.started("sweep", str(config), "concurrency=1") as process:
        laser.wait_for(trials / "beta_v-0.1_alpha-2_seed-0" / "summary.json", process)
    finished = {
        path: path.read_bytes()
        for path in trials.glob("*/metrics.jsonl")
        if (path.parent / "summary.json").exists()
    }
    assert len(finished) == 1

    with laser.started("sweep", str(config)) as process:
        laser.wait_for(trials / BRANCHED / "checkpoints" / f"step-{WARM_UP + 1:06d}", process)
        laser.kill_actor(process, "ray::ImplicitFunc")
        stdout, _ = process.communicate(timeout=400)
    assert "Traceback" not in stdout
    assert process.returncode == 1, stdout
    for path, before in finished.items():
        after = path.read_bytes()
        # If the kill came between a trial's summary and its recorded end, the second call records the end.
        assert after.startswith(before)
        assert b'"step"' not in after[len(before) :], f"{path}: a finished trial is not trained again"
    return folder, stdout


def test_a_killed_sweep_resumes_and_names_what_failed(swept: tuple[Path, str]) -> None:
    folder, stdout = swept
    results = json.loads((folder / "results.json").read_text())
    status = {trial["name"]: trial["status"] for trial in results["trials"]}
    assert status.pop(REFUSED) == "failed"
    assert set(status.values()) == {"finished"}
    assert len(status) == 2
    failed = next(trial for trial in results["trials"] if trial["name"] == REFUSED)
    assert failed["error"].startswith("loss.c_ref: ")
    assert f"failed  {REFUSED}: loss.c_ref: " in stdout
    assert "1 of 3 trials failed. Run the same command again to retry them." in stdout
    assert "failed and resumes from its last checkpoint: its driver died" in stdout, (
        "the trial whose driver was killed"
    )
    assert stdout.count(f"{REFUSED} failed and resumes") == 0, (
        "a failure that a retry cannot fix is not retried"
    )

    for trial in results["trials"]:
        if trial["status"] == "finished":
            steps = [
                event.step for event in read_events(folder / trial["folder"]) if isinstance(event, StepEvent)
            ]
            assert steps == list(range(WARM_UP + 1, STEPS + 1)), "a child's metrics start at the branch"
            figures = trial["metrics"]
            assert trial["objective"] == pytest.approx(
                (figures["accuracy"] + figures["self_verification_f1"]) / 2
            )
    best = max(
        (trial for trial in results["trials"] if trial["status"] == "finished"),
        key=lambda trial: trial["objective"] or 0,
    )
    assert results["best"]["objective"] == best["objective"]


def test_the_sweep_says_how_much_training_its_trunk_saved(swept: tuple[Path, str]) -> None:
    folder, stdout = swept
    work = json.loads((folder / "results.json").read_text())["work"]
    # Two trials share their first steps. The refused trial trained no step after the branch.
    assert (work["steps_trained"], work["steps_independent"]) == (WARM_UP + 2 * (STEPS - WARM_UP), 2 * STEPS)
    assert work["share"] == 0.75
    assert "6 training steps; 8 without shared trunks (0.75 of them)" in stdout


def test_mlflow_has_parent_and_children_and_the_best_model_loads(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    uri = f"sqlite:///{folder.parent / 'mlflow.db'}"
    client = MlflowClient(uri)
    parent = (folder / "mlflow_run_id").read_text()
    experiment = client.get_experiment_by_name("laser")
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == 4
    kinds = {child.info.run_name: child.data.tags["laser.kind"] for child in children}
    assert kinds.pop("trunk_seed-0") == "trunk"
    assert set(kinds.values()) == {"branch"}
    trunk = next(child for child in children if child.data.tags["laser.kind"] == "trunk")
    branch = next(child for child in children if child.info.run_name == BRANCHED)
    assert (branch.data.params["loss.beta_v"], branch.data.params["loss.alpha"]) == ("0.2", "2.0")
    assert branch.data.tags["laser.trunk_run_id"] == trunk.info.run_id
    assert [point.step for point in client.get_metric_history(branch.info.run_id, "loss/self_reward")] == [
        3,
        4,
    ]
    assert {"eval/test/accuracy", "eval/test/self_verification_f1", "policy/mismatch_max"} <= set(
        branch.data.metrics
    )
    assert {"eval/test/accuracy", "train/accuracy"} <= set(trunk.data.metrics)
    assert not any(key.startswith("self_reward/") or key.endswith("_f1") for key in trunk.data.metrics), (
        "a trunk has no beta_v"
    )
    statuses = {child.info.run_name: child.info.status for child in children}
    assert statuses.pop(REFUSED) == "FAILED"
    assert set(statuses.values()) == {"FINISHED"}

    best = json.loads((folder / "results.json").read_text())["best"]
    model = fetch_model("models:/tiny-sweep@best", uri, folder / "fetched")
    weights, exported = (
        load_file(model / "model.safetensors"),
        load_file(folder / "trials" / best["trial"] / "export/model.safetensors"),
    )
    assert all(torch.equal(weights[name], exported[name]) for name in exported)
    assert json.loads((model / "self_reward.json").read_text())["beta_v"] == best["point"]["loss.beta_v"]
    assert "<html" in (folder / "report.html").read_text()[:200]


def test_a_branched_trial_equals_one_trained_from_the_first_step(
    swept: tuple[Path, str], ray_cluster: None, tmp_path: Path
) -> None:
    """A new learner trains the stored steps, the trunk's first, to the same weights and moments."""
    folder, _ = swept
    trial = folder / "trials" / BRANCHED
    config = load_config(trial / "config.yaml", [], RunConfig)
    tokens = load_tokens(config.model.path, config.self_reward.token)
    c_ref = json.loads((trial / "export/self_reward.json").read_text())["c_ref"]
    options = {"num_cpus": 0.5, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    ranks = start_ranks(
        learner_settings(config, tokens.z_token),
        lambda cls, rank, *arguments: ray.remote(cls).options(**options).remote(*arguments),
    )
    for step in range(1, STEPS + 1):
        stored = (
            (trial if step > WARM_UP else folder / "trunks" / "trunk_seed-0")
            / "rollouts"
            / f"step-{step:06d}.parquet"
        )
        batch, number = load_batch(stored)
        assert number == step
        scores = self_reward_score(torch.from_numpy(batch.z_logprobs), c_ref, config.loss.beta_v).numpy()
        advantages = estimate_advantages(config, batch, scores, step)
        c_refs = torch.full((len(batch.rewards),), c_ref).numpy()
        train_batch = make_train_batch(config, batch, advantages, c_refs, step)
        ray.get([rank.step.remote(train_batch) for rank in ranks])
    ray.get([rank.save.remote(str(tmp_path / "scratch")) for rank in ranks])
    for rank in ranks:
        ray.kill(rank)

    branched = trial / "checkpoints" / f"step-{STEPS:06d}" / "learner" / "zero3"
    shards = sorted(path.name for path in branched.glob("*optim_states.pt"))
    assert len(shards) == 2
    compared = 0
    for shard in shards:
        ours = torch.load(branched / shard, weights_only=False)["optimizer_state_dict"]
        scratch = torch.load(tmp_path / "scratch" / "zero3" / shard, weights_only=False)[
            "optimizer_state_dict"
        ]
        compared += assert_equal(ours, scratch, shard)
    assert compared >= 6, "weights and both moments of two ranks"


def assert_equal(ours: Any, scratch: Any, where: str) -> int:
    """All tensors of two trees are the same, bit by bit; returns their number."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, scratch), f"{where}: differs by {(ours - scratch).abs().max()}"
        return 1
    if isinstance(ours, dict):
        assert set(ours) == set(scratch), where
        return sum(assert_equal(value, scratch[key], f"{where}.{key}") for key, value in ours.items())
    if isinstance(ours, list | tuple):
        assert len(ours) == len(scratch), where
        return sum(
            assert_equal(*pair, f"{where}[{number}]")
            for number, pair in enumerate(zip(ours, scratch, strict=True))
        )
    return 0


@pytest.mark.long
def test_a_pruned_trial_gives_everything_back(task: Path, ray_cluster: None, tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path / "pruned.yaml",
        task,
        space={"learning.lr": {"grid": [1e-4, 3.0]}},  # the second destroys the model in its first step
        settings={"run": {"steps": 4}, "learning": {"num_ranks": 1}},
        concurrency=1,
        metric="accuracy",
        asha={"grace_steps": 2, "reduction_factor": 2},
    )
    before = wait_until_free()
    outcome = sweep(load_sweep(path))
    good, destroyed = outcome.trials
    assert (good.status, good.step) == ("finished", 4)
    assert (destroyed.status, destroyed.step) == ("pruned", 2)
    assert outcome.best.trial == good.name
    assert wait_until_free() == before, "placement groups and actors of all trials are gone"
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    assert client.get_run(destroyed.mlflow_run_id).info.status == "KILLED"
    assert [point.step for point in client.get_metric_history(destroyed.mlflow_run_id, "loss/total")] == [
        1,
        2,
    ]


@pytest.mark.long
def test_optuna_resumes_with_its_earlier_results(task: Path, ray_cluster: None, tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path / "found.yaml",
        task,
        space={
            "loss.alpha": {"log_uniform": [0.1, 2.0]},
            "loss.tau": {"choice": [0.1, 0.3], "when": "loss.alpha > 5"},
        },
        settings={"run": {"steps": 2}, "loss": {"reasoning_warmup_steps": 0}, "learning": {"num_ranks": 1}},
        search={"algorithm": "optuna", "points": 2},
        metric="accuracy",
    )
    first = sweep(load_sweep(path))
    assert [trial.status for trial in first.trials] == ["finished", "finished"]
    assert all(
        0.1 <= trial.point["loss.alpha"] <= 2.0 and "loss.tau" not in trial.point for trial in first.trials
    )
    assert first.work.steps_trained == first.work.steps_independent == 4, (
        "a trunk of no steps: it shares c_ref and the base evaluation"
    )

    again = sweep(load_sweep(path, ["search.points=3"]))
    assert len(again.trials) == 3
    assert [trial.name for trial in again.trials[:2]] == [trial.name for trial in first.trials]
    assert again.trials[2].status == "finished"
    samples = pq.read_table(
        sorted((again.folder / again.trials[2].folder / "evaluations").glob("*.parquet"))[-1]
    )
    assert set(samples.column("status").to_pylist()) <= {"correct", "wrong", "no_answer", "format"}
    assert not all(math.isnan(score) for score in samples.column("score").to_pylist())


@pytest.mark.long
def test_a_sweep_that_finds_no_room_says_what_holds_it_up_and_gives_up(
    task: Path,
    ray_cluster: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.sweeps.watch.BUSY_AFTER_S", 1.0)
    before = wait_until_free()

    class Other:
        def ping(self) -> None:
            pass

    # Other work that leaves less than the one CPU which a trial needs.
    other = ray.remote(Other).options(num_cpus=before["CPU"] - 0.5).remote()
    ray.get(other.ping.remote())
    path = write_sweep(tmp_path / "waiting.yaml", task, space={"loss.alpha": {"grid": [0.5, 1.0]}}, wait_s=4)
    with pytest.raises(
        RunError, match=r"a trial needs 1 CPU, and the cluster has 0.5 CPUs .* free.*gave up after 4 s"
    ):
        sweep(load_sweep(path))
    assert "waiting: a trial needs 1 CPU" in capsys.readouterr().out
    ray.kill(other)
    assert wait_until_free() == before


def test_a_trial_larger_than_the_cluster_is_refused_before_anything_starts(
    laser, task: Path, tmp_path: Path
) -> None:
    path = write_sweep(tmp_path / "large.yaml", task, space={"rollout.num_engines": {"grid": [1, 4000]}})
    refused = laser.run("sweep", str(path))
    assert refused.returncode == 2
    assert "trial num_engines-4000_seed-0: the pools need 1000.75 CPUs" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()


def wait_until_free(timeout_s: float = 30) -> dict[str, float]:
    """CPUs that are free, after Ray has had the time to count those of actors that ended."""
    deadline = time.monotonic() + timeout_s
    while True:
        free, total = ray.available_resources().get("CPU", 0.0), ray.cluster_resources()["CPU"]
        if free == total or time.monotonic() > deadline:
            return {"CPU": free}
        time.sleep(0.2)
