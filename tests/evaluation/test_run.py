"""Preparing an evaluation, and evaluating stored samples again: a real verification pool, no engine."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.config.evaluation import EvalConfig
from orchestrator.config.training import load_config
from orchestrator.data.tokens import load_tokens
from orchestrator.errors import ConfigError, DataError
from orchestrator.evaluation.preparation import prepare
from orchestrator.evaluation.run import evaluate, load_eval
from orchestrator.evaluation.samples import EvalSample, SampleFile, read_samples
from orchestrator.evaluation.show import EvalProgress
from orchestrator.storage.card import SelfRewardCard, template_hash
from orchestrator.storage.checkpoints import Checkpoints, TrainingState

ROOT = Path(__file__).parents[2]
BASE = ROOT / "experiments" / "quickstart" / "base"
TEST = ROOT / "experiments" / "quickstart" / "test.jsonl"


def prepared(**settings):
    said = []
    settings = {"model": str(BASE), "data": [str(TEST)]} | settings
    return prepare(
        load_eval(None, {key: value for key, value in settings.items() if value is not None}, []),
        "unused",
        said.append,
    ), said


@pytest.fixture(scope="module")
def scored_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "scored"
    shutil.copytree(BASE, folder)
    tokens = load_tokens(str(folder), "<|self_reward|>")
    SelfRewardCard(
        "<|self_reward|>", tokens.z_token, -20.0, 0.1, [2], "", template_hash(tokens.tokenizer)
    ).write(folder)
    return folder


def test_a_model_without_a_card_has_no_score_and_the_papers_instruction():
    found, said = prepared(data=[f"{TEST}:3"], max_problems=5)
    assert found.score is None
    assert any("no self_reward.json" in line for line in said)
    assert found.instruction.startswith("Please reason step by step")
    assert [(one.name, len(one.prompts), one.samples_per_problem) for one in found.sets] == [("test", 5, 3)]
    # The base model has 512 positions; one of them is for z_c.
    longest = max(len(found.sets[0].prompts.token_ids(index)) for index in range(5))
    assert found.longest_response == 512 - longest - 1
    assert any(
        f"{found.longest_response} tokens and not 8192: the model's context is 512 tokens" in line
        for line in said
    )
    assert found.engine_settings().z_token is None
    assert found.engine_settings().dtype == found.protocol()["dtype"] == "float32", (
        "the model's own, not vLLM's half precision"
    )
    assert prepared(**{"rollout.dtype": "bfloat16"})[0].engine_settings().dtype == "bfloat16"


def test_a_card_brings_score_and_instruction_and_either_can_be_replaced(scored_model):
    found, _ = prepared(model=str(scored_model))
    assert (found.score.origin, found.score.c_ref, found.score.beta_v, found.instruction) == (
        "trained",
        -20.0,
        0.1,
        "",
    )
    assert found.engine_settings().z_token == found.score.token_id
    assert prepared(model=str(scored_model), score="none")[0].score is None
    assert prepared(model=str(scored_model), instruction="Think.")[0].instruction == "Think."


def test_a_baseline_score_needs_a_token_of_its_own():
    found, _ = prepared(score="baseline", **{"baseline.token": "<|self_reward|>", "baseline.beta_v": 0.2})
    assert (found.score.c_ref, found.score.beta_v, found.score.origin) == (None, 0.2, "baseline")
    with pytest.raises(ConfigError, match=r"needs baseline\.token"):
        prepared(score="baseline")
    with pytest.raises(ConfigError, match=r"is no single token"):
        prepared(score="baseline", **{"baseline.token": "12345"})


def test_prompts_that_leave_no_room_are_refused():
    with pytest.raises(ConfigError, match=r"leaves no room for a response in the model's context of 512"):
        prepared(instruction="1+" * 240)


def stored(number, response, status, z_logprob=-18.0, reference="1/2", finished=True):
    return EvalSample(
        "s", f"p{reference}", "1:2=?", reference, None, number, number, response, 5, finished, status,
        None, None, z_logprob, 0.1
    )  # fmt: skip


@pytest.fixture
def samples(tmp_path):
    """Two problems of four samples, whose stored verdicts are all wrong."""
    file = SampleFile(tmp_path)
    responses = [r"\boxed{0.5}", r"\boxed{\frac12}", r"\boxed{3}", r"\boxed{3.0}"]
    file.append([stored(number, response, "error") for number, response in enumerate(responses)])
    unfinished = stored(3, "I th", "error", math.nan, "2", finished=False)
    others = [r"\boxed{2}", r"\boxed{x=4}", r"\boxed{2} \boxed{2}"]
    file.append(
        [
            *(stored(number, response, "correct", -10.0, "2") for number, response in enumerate(others)),
            unfinished,
        ]
    )
    return file.path


def evaluate_again(samples, tmp_path, **settings):
    folder = tmp_path / f"again-{len(settings)}"
    config = load_eval(
        None,
        {"samples": str(samples), "folder": str(folder), "dir": str(tmp_path), "verification.cpus": 0.5}
        | settings,
        [],
    )
    return evaluate(config, EvalProgress(Console(file=(tmp_path / "out").open("w"))))


def test_stored_samples_are_checked_pooled_and_scored_again(ray_cluster, samples, tmp_path):
    results = evaluate_again(samples, tmp_path)
    again = read_samples(results.folder / "samples.jsonl")
    assert [(one.status, one.answer_class) for one in again] == [
        ("correct", 0), ("correct", 0), ("wrong", 1), ("wrong", 1),
        ("correct", 0), ("wrong", 1), ("format", None), ("no_answer", None),
    ]  # fmt: skip
    assert {one.score for one in again} == {0.1}, "kept as they are"
    found = results.sets[0]
    assert found.figures.accuracy == pytest.approx(3 / 8)
    assert found.at_k[-1].maj_at_k == 0.5, "two against two, one against one"
    assert json.loads((results.folder / "results.json").read_text()) == results.tree()

    # c_ref is the mean over the finished samples: 4 x -18 and 3 x -10.
    baseline = evaluate_again(samples, tmp_path, score="baseline", **{"baseline.beta_v": 0.5})
    c_ref = -(4 * 18 + 3 * 10) / 7
    assert baseline.score["c_ref"] == pytest.approx(c_ref)
    scores = [one.score for one in read_samples(baseline.folder / "samples.jsonl")]
    assert scores[:7] == pytest.approx([0.5 * (-18 - c_ref)] * 4 + [0.5 * (-10 - c_ref)] * 3)
    assert math.isnan(scores[7])
    assert math.isnan(
        evaluate_again(samples, tmp_path, score="none", seed=0, temperature=1.0).sets[0].figures.ece
    )


def test_stored_samples_as_another_model_reads_them(samples, scored_model):
    found, _ = prepared(model=str(scored_model), data=None, samples=str(samples))
    assert found.needs_scoring
    ids = found.stored_token_ids
    assert len(ids) == 7, "the unfinished one has no score"
    tokenizer = found.model.tokens.tokenizer
    first = ids["s", "p1/2", 0]
    assert first[-1] == 2
    assert tokenizer.decode(first, skip_special_tokens=True).replace(" ", "").endswith(r"\boxed{0.5}")
    assert found.engine_settings().max_prompt_tokens == max(map(len, ids.values()))


def test_stored_samples_that_cannot_be_scored_are_refused(samples, scored_model, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="holds no sample"):
        prepared(model=None, data=None, samples=str(tmp_path / "empty.jsonl"))
    long = [replace(one, response="1+" * 300) for one in read_samples(samples)[:1]]
    (tmp_path / "long").mkdir()
    SampleFile(tmp_path / "long").append(long)
    with pytest.raises(ConfigError, match=r"a sample has \d+ tokens, but .* a context of 512"):
        prepared(model=str(scored_model), data=None, samples=str(tmp_path / "long" / "samples.jsonl"))
    without = [replace(one, z_logprob=math.nan) for one in read_samples(samples)]
    (tmp_path / "plain").mkdir()
    SampleFile(tmp_path / "plain").append(without)
    with pytest.raises(ConfigError, match=r"holds no log pi\(z_c\)"):
        prepared(model=None, data=None, samples=str(tmp_path / "plain" / "samples.jsonl"), score="baseline")


def test_a_run_that_is_evaluated_while_it_trains_keeps_the_weights(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "runs" / "trained", keep=1)

    def save(step):
        state = TrainingState(step, 1, {}, None, None, 0.0, None)

        def write(folder):
            shutil.copytree(BASE, folder / "export")

        checkpoints.save(state, write)

    class Stop(Exception):
        """Instead of the engines, which would read the model here."""

    def train_on(session):
        save(2)
        save(3)
        assert Path(session.prepared.model.path, "model.safetensors").exists()
        raise Stop

    save(1)
    monkeypatch.setattr("orchestrator.evaluation.run.EvalSession.samples", train_on)
    settings = {
        "model": str(checkpoints.run_folder),
        "data": [str(TEST)],
        "folder": str(tmp_path / "out"),
        "dir": str(tmp_path / "runs"),
    }
    with pytest.raises(Stop):
        evaluate(load_eval(None, settings, []))
    save(4)
    assert [path.name for path in checkpoints.folder.glob("step-*")] == ["step-000004"]


def test_overrides_go_over_options_over_the_file(tmp_path):
    path = tmp_path / "eval.yaml"
    path.write_text("seed: 1\ntemperature: 0.5\nrollout: {num_engines: 2}\n")
    config = load_eval(path, {"temperature": 0.7}, ["rollout.cpus=0.5", "temperature=0.9"])
    assert (config.seed, config.temperature, config.rollout.num_engines, config.rollout.cpus) == (
        1,
        0.9,
        2,
        0.5,
    )
    assert load_config(path, [], EvalConfig).temperature == 0.5
    assert load_eval(path, {}, ["instruction="]).instruction == "", "none, and not the default"
    with pytest.raises(ConfigError, match=r"rollout\.engines: unknown key"):
        load_eval(path, {}, ["rollout.engines=1"])
    with pytest.raises(ConfigError, match=r"write key.path=value"):
        load_eval(path, {}, ["seed"])
