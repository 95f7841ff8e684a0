"""A model that does not fit its settings: every command refuses it with status 2, before Ray starts."""

import json
import shutil
from pathlib import Path

import pytest
import ray
import yaml
from transformers import AutoTokenizer

from orchestrator.cli import main
from orchestrator.storage.card import SelfRewardCard, template_hash
from tests.settings import settings

BASE = Path(__file__).parents[1] / "experiments" / "quickstart" / "base"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose tokenizer has a token more than the model has rows; its card reads the score from it."""
    folder = tmp_path_factory.mktemp("model") / "short"
    shutil.copytree(BASE, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(folder)
    z_token = tokenizer.convert_tokens_to_ids("<|new|>")
    SelfRewardCard("<|new|>", z_token, -22.0, 0.1, [2], "", template_hash(tokenizer)).write(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray starts"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    rows = [{"problem": f"{n}+1=", "answer": str(n + 1), "solution": str(n + 1)} for n in range(300)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def written(name, tree):
    Path(name).write_text(yaml.safe_dump(tree))
    return name


def training(model, token, tensor_parallel=1):
    return settings(
        model={"path": str(model)}, self_reward={"token": token}, rollout={"tensor_parallel": tensor_parallel}
    )


def sweep(model, token, tensor_parallel=1):
    base_tree = training(model, "<|self_reward|>")
    base_tree["data"] = base_tree["data"] | {"eval": "train.jsonl"}
    base = written("base.yaml", base_tree)
    tree = {"name": "s", "base": base}
    other = {"grid": [token]} if token != "<|self_reward|>" else {"grid": [tensor_parallel]}
    key = "self_reward.token" if token != "<|self_reward|>" else "rollout.tensor_parallel"
    return written("sweep.yaml", tree | {"space": {key: other}})


COMMANDS = {
    "check": lambda model, *fault: ["check", written("c.yaml", training(model, *fault))],
    "train": lambda model, *fault: ["train", written("c.yaml", training(model, *fault))],
    "submit": lambda model, *fault: ["submit", written("c.yaml", training(model, *fault))],
    "sweep": lambda model, *fault: ["sweep", sweep(model, *fault)],
    "sft": lambda model, token, *_: [
        "sft",
        written(
            "c.yaml",
            {
                "run": {"name": "s", "steps": 1},
                "model": {"path": str(model)},
                "data": {"train": "train.jsonl"},
                "self_reward": {"token": token},
            },
        ),
    ],
    "eval": lambda model, token, tp=1: [
        *("eval", "--model", str(model), "--data", "train.jsonl", f"rollout.tensor_parallel={tp}")
    ],
    "serve": lambda model, token, tp=1: ["serve", "--model", str(model), f"engine.tensor_parallel={tp}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_score_token_without_a_row_in_the_embedding(command, model, folder, capsys):
    assert main(COMMANDS[command](model, "<|new|>")) == 2
    assert "has id 260, but the model's last embedding has id 259" in capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "sft"])
def test_heads_that_the_engine_cannot_split(command, folder, capsys):
    assert main(COMMANDS[command](BASE, "<|self_reward|>", 3)) == 2
    assert "tensor_parallel=3 does not divide the model's 4 attention heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("check", "model.eos_tokens"),
        ("train", "model.eos_tokens"),
        ("eval", "eos_tokens"),
        ("serve", "engine.eos_tokens"),
    ],
)
def test_eos_tokens_that_are_none(command, key, folder, capsys):
    arguments = [*COMMANDS[command](BASE, "<|self_reward|>"), f"{key}=[two words]"]
    assert main(arguments) == 2
    assert f"{key}: 'two words' is no single token" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "key"), [("eval", "eos_tokens"), ("serve", "engine.eos_tokens")])
def test_eos_tokens_after_which_the_score_was_not_trained(command, key, folder, tmp_path, capsys):
    shutil.copytree(BASE, tmp_path / "scored")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    SelfRewardCard("<|self_reward|>", 3, -22.0, 0.1, [2], "", template_hash(tokenizer)).write(
        tmp_path / "scored"
    )
    assert main([*COMMANDS[command](tmp_path / "scored", ""), f"{key}=1"]) == 2
    assert f"{key}: is [1], but the score of" in capsys.readouterr().err
