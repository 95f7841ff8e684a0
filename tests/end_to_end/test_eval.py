"""`laser eval` as a user runs it: killed in the middle, continued with another number of engines, its figures
against brute force.
"""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from orchestrator.data.prompts import render_prompt
from orchestrator.data.tokens import load_tokens
from orchestrator.storage.card import SelfRewardCard, template_hash

PROBLEMS, SAMPLES = 16, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick-start's base model with a card, as if it had been trained to score: its scores are spread
    around 0.5.
    """
    folder = tmp_path_factory.mktemp("model") / "scored"
    shutil.copytree("experiments/quickstart/base", folder)
    tokens = load_tokens(str(folder), "<|self_reward|>")
    assert tokens.z_token is not None
    SelfRewardCard(
        "<|self_reward|>",
        tokens.z_token,
        -21.4,
        1.0,
        list(tokens.eos_tokens),
        "",
        template_hash(tokens.tokenizer),
    ).write(folder)
    return folder


def fair_vote(chosen: list[dict], weights: list[float]) -> float:
    """Correctness of the answer with the most votes, shared among those that tie."""
    votes: dict[str, float] = {}
    right: dict[str, bool] = {}
    for sample, weight in zip(chosen, weights, strict=True):
        if sample["status"] not in ("correct", "wrong"):
            continue
        name = "reference" if sample["status"] == "correct" else sample["answer"].lstrip("0")
        votes[name] = votes.get(name, 0.0) + weight
        right[name] = sample["status"] == "correct"
    if not votes:
        return 0.0
    winners = [name for name, vote in votes.items() if vote > max(votes.values()) - 1e-9]
    return sum(right[name] for name in winners) / len(winners)


def vote_at_k(problems: list[list[dict]], k: int, weighted: bool) -> float:
    def weight(sample: dict) -> float:
        return (
            1.0 if not weighted else 0.0 if sample["score"] is None else min(max(sample["score"], 0.0), 1.0)
        )

    by_problem = []
    for samples in problems:
        subsets = list(itertools.combinations(samples, k))
        by_problem.append(
            sum(fair_vote(list(subset), [weight(sample) for sample in subset]) for subset in subsets)
            / len(subsets)
        )
    return sum(by_problem) / len(by_problem)


def test_a_killed_evaluation_continues_and_its_figures_are_those_of_brute_force(
    laser, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    command = [
        "eval",
        "--model",
        str(model),
        "--data",
        "experiments/quickstart/test.jsonl",
        "-o",
        str(folder),
        f"dir={tmp_path}",
        f"max_problems={PROBLEMS}",
        f"samples_per_problem={SAMPLES}",
        "rollout.max_response_tokens=96",
        "rollout.cpus=0.5",
        "verification.cpus=0.25",
    ]
    file = folder / "samples.jsonl"
    # Few sequences at a time, so that some samples are there long before the others.
    with laser.started(*command, "rollout.engine_args={enforce_eager: true, max_num_seqs: 4}") as process:
        laser.wait_for(file, process)
    before = [
        json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")
    ]
    assert 0 < len(before) < PROBLEMS * SAMPLES
    assert not (folder / "results.json").exists()
    with file.open("ab") as end:
        end.write(b'{"set": "test", "problem_')

    eager = "rollout.engine_args={enforce_eager: true}"
    resumed = laser.run(*command, "rollout.num_engines=2", eager)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming: {len(before)} samples are drawn" in resumed.stdout
    assert "weighted Maj@k" in resumed.stdout
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    by_number = {(sample["problem_id"], sample["sample"]): sample for sample in samples}
    assert len(samples) == len(by_number) == PROBLEMS * SAMPLES
    assert len({sample["seed"] for sample in samples}) == PROBLEMS * SAMPLES
    for sample in before:
        again = by_number[sample["problem_id"], sample["sample"]]
        assert {**again, "answer_class": None} == sample, "what was drawn before the kill is kept"

    problems = [samples[first : first + SAMPLES] for first in range(0, len(samples), SAMPLES)]
    assert all(len({sample["problem_id"] for sample in group}) == 1 for group in problems), (
        "the file is sorted in the end"
    )
    found = json.loads((folder / "results.json").read_text())["sets"][0]
    figures = found["figures"]
    scored = [sample for sample in samples if sample["finished"]]
    assert len({sample["score"] > 0.5 for sample in scored}) == 2, (
        "scores on both sides, or this test says little"
    )
    right = [sample["score"] > 0.5 for sample in scored if sample["status"] == "correct"]
    wrong = [sample["score"] <= 0.5 for sample in scored if sample["status"] != "correct"]
    one, other = sum(right) / len(right), sum(wrong) / len(wrong)
    assert figures["self_verification_f1"] == pytest.approx(2 * one * other / (one + other))
    assert figures["accuracy"] == pytest.approx(
        sum(sample["status"] == "correct" for sample in samples) / len(samples)
    )
    assert figures["finished_share"] == len(scored) / len(samples)
    for row in found["at_k"]:
        assert row["maj_at_k"] == pytest.approx(vote_at_k(problems, row["k"], weighted=False))
        assert row["weighted_at_k"] == pytest.approx(vote_at_k(problems, row["k"], weighted=True))
        some = [
            any(s["status"] == "correct" for s in subset)
            for group in problems
            for subset in itertools.combinations(group, row["k"])
        ]
        assert row["pass_at_k"] == pytest.approx(sum(some) / len(some))
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    chat = load_tokens(str(model), None).chat
    tokenizer = chat.tokenizer
    for sample in scored:
        assert sample["score"] == pytest.approx(sample["z_logprob"] + 21.4)
        prompt, response = (
            render_prompt(chat, sample["problem"], "", "samples.jsonl"),
            tokenizer.encode(sample["response"], add_special_tokens=False),
        )
        with torch.no_grad():
            logits = network(torch.tensor([[*prompt, *response, 2]])).logits[0, -1]
        if len(response) + 1 == sample["tokens"]:  # the text's tokens are those that were sampled
            assert sample["z_logprob"] == pytest.approx(logits.log_softmax(-1)[3].item(), abs=1e-3)
    assert (
        sum(len(tokenizer.encode(s["response"], add_special_tokens=False)) + 1 == s["tokens"] for s in scored)
        > len(scored) / 2
    )

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    stored = client.get_run((folder / "mlflow_run_id").read_text())
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["laser.model"] == str(model)
    assert stored.data.metrics["eval/test/self_verification_f1"] == pytest.approx(
        figures["self_verification_f1"]
    )
    assert stored.data.metrics["eval/test/weighted_at_k"] == pytest.approx(found["at_k"][-1]["weighted_at_k"])
    artifacts = {artifact.path for artifact in client.list_artifacts(stored.info.run_id)}
    assert artifacts >= {"results.json", "accuracy-against-tokens.png"}

    # All is there: no pool is started. Other settings are refused.
    written = file.read_bytes(), (folder / "results.json").read_bytes()
    again = laser.run(*command, eager)
    assert again.returncode == 0, again.stderr
    assert "starting the pools" not in again.stdout
    assert (file.read_bytes(), (folder / "results.json").read_bytes()) == written
    assert len(client.get_metric_history(stored.info.run_id, "eval/test/accuracy")) == 1
    other_settings = laser.run(*command, "seed=1")
    assert other_settings.returncode == 2
    assert "seed: 0 before, 1 now" in other_settings.stderr
    assert "Traceback" not in other_settings.stderr
