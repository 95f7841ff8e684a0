"""What `--model` may name, with the quick-start's base model and its tokenizer."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.data.tokens import load_tokens
from orchestrator.errors import ConfigError
from orchestrator.models import registry
from orchestrator.models import resolve as models
from orchestrator.models.resolve import resolve_model
from orchestrator.storage.card import SelfRewardCard, template_hash
from orchestrator.storage.files import lease_free

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"


@pytest.fixture(scope="module")
def card():
    tokens = load_tokens(str(BASE), "<|self_reward|>")
    return SelfRewardCard(
        "<|self_reward|>", tokens.z_token, -20.0, 0.1, [2], "Think.", template_hash(tokens.tokenizer)
    )


@pytest.fixture
def run(tmp_path, monkeypatch, card):
    """A run `runs/mine` as training leaves it, with two checkpoints."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/mine")
    for step in ("step-000001", "step-000002"):
        shutil.copytree(BASE, folder / "checkpoints" / step / "export")
        card.write(folder / "checkpoints" / step / "export")
    (folder / "export").symlink_to("checkpoints/step-000002/export")
    return folder


def test_a_folder_without_a_card_has_no_score():
    model = resolve_model(str(BASE))
    assert (model.path, model.card, model.tokens.z_token, model.tokens.eos_tokens) == (
        str(BASE),
        None,
        None,
        (2,),
    )


def test_a_run_means_its_newest_weights_at_the_time_of_the_call(run, card):
    by_name, by_folder = resolve_model("mine"), resolve_model("runs/mine")
    assert by_name == by_folder or (by_name.path, by_name.origin) == (by_folder.path, by_folder.origin)
    assert by_name.path == str(run.resolve() / "checkpoints" / "step-000002" / "export")
    assert by_name.origin == "runs/mine step-000002"
    assert by_name.card == card
    assert by_name.tokens.z_token == card.token_id


def test_weights_are_held_until_the_hold_is_closed(run):
    file = run / "export" / "config.json"
    with contextlib.ExitStack() as hold:
        resolve_model("mine", hold=hold)
        with lease_free(file) as free:
            assert not free
    resolve_model("mine")
    with lease_free(file) as free:
        assert free


def test_weights_that_the_run_deletes_meanwhile_are_looked_up_again(run, monkeypatch):
    locate, found = models.locate, []

    def prune_after_the_first(name, tracking_uri):
        found.append(locate(name, tracking_uri))
        if len(found) == 1:  # as the run does when it saves at this moment
            (run / "export").unlink()
            (run / "export").symlink_to("checkpoints/step-000001/export")
            shutil.rmtree(run / "checkpoints" / "step-000002")
        return found[-1]

    monkeypatch.setattr(models, "locate", prune_after_the_first)
    assert resolve_model("mine").origin == "runs/mine step-000001"


def test_a_checkpoint_means_its_own_weights(run):
    model = resolve_model("runs/mine/checkpoints/step-000001")
    assert model.path == str(run.resolve() / "checkpoints" / "step-000001" / "export")
    assert model.origin == "runs/mine/checkpoints/step-000001"


def test_a_sweep_means_its_best_trial(run):
    sweep = Path("runs/swept")
    shutil.copytree(run, sweep / "trials" / "second", symlinks=True)
    trials = [{"name": name, "folder": f"trials/{name}"} for name in ("first", "second")]
    (sweep / "results.json").write_text(json.dumps({"best": {"trial": "second"}, "trials": trials}))
    assert resolve_model("swept").origin == "runs/swept/trials/second step-000002"
    (sweep / "results.json").write_text(json.dumps({"best": {"trial": "first"}, "trials": trials}))
    with pytest.raises(ConfigError, match=r"its best trial, .*first, has no export/"):
        resolve_model("swept")
    (sweep / "results.json").write_text(json.dumps({"best": None, "trials": trials}))
    with pytest.raises(ConfigError, match="no trial of this sweep has finished yet"):
        resolve_model("swept")
    (sweep / "results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"results\.json: cannot be read"):
        resolve_model("swept")


def test_a_registered_model_is_fetched(run, monkeypatch, tmp_path):
    asked = []
    folder = tmp_path / "cache" / "lasers" / "3-0123456789ab"
    shutil.copytree(BASE, folder)
    monkeypatch.setattr(registry, "fetch_model", lambda *arguments: (asked.append(arguments), folder)[1])
    model = resolve_model("models:/lasers@best", "http://tracking:5000")
    assert asked == [("models:/lasers@best", "http://tracking:5000")]
    assert (model.path, model.origin) == (str(folder), "models:/lasers/3")


def test_a_missing_model_is_refused_with_the_attempts(run, tmp_path):
    with pytest.raises(
        ConfigError, match=r"Tried nothing \(no such folder\), runs/nothing \(no such folder\).*no hub name"
    ):
        resolve_model("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json, export/ or finished sweep in it"):
        resolve_model("empty")
    (run / "export" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights"):
        resolve_model("mine")


def test_a_card_of_another_template_or_tokenizer_is_refused(run, card):
    export = run / "export"
    replace(card, chat_template_sha256="0" * 64).write(export)
    with pytest.raises(
        ConfigError,
        match=r"its score was trained with another chat template .*delete self_reward.json",
    ):
        resolve_model("mine")
    replace(card, token_id=card.token_id + 1).write(export)
    with pytest.raises(
        ConfigError,
        match=rf"is token {card.token_id} in its tokenizer and token {card.token_id + 1} in its self_reward",
    ):
        resolve_model("mine")
    (export / "self_reward.json").write_text('{"token": "x"}')
    with pytest.raises(ConfigError, match=r"self_reward.json: is not a self-reward card"):
        resolve_model("mine")
    replace(card, eos_token_ids=[2, 5]).write(export)
    assert resolve_model("mine").tokens.eos_tokens == (2, 5)


def test_the_default_tracking_server_is_the_runs_database(run, monkeypatch, tmp_path):
    asked = []
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(
        registry, "fetch_model", lambda uri, server: (asked.append(server), run.resolve() / "export")[1]
    )
    resolve_model("models:/lasers/1")
    assert asked == [f"sqlite:///{models.RUNS}/mlflow.db"]
