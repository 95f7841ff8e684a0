"""What an engine replica needs to know of its model."""

import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from orchestrator.config.serving import ServedEngine
from orchestrator.data.tokens import ModelTokens
from orchestrator.errors import ConfigError
from orchestrator.models.resolve import ResolvedModel
from orchestrator.serving.served_engine import served_engine_settings, weights_name

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"


@pytest.mark.parametrize(("positions", "lengths"), [(512, (128, 383)), (32768, (2048, 8192))])
def test_lengths_follow_the_models_positions(positions, lengths, tmp_path):
    assert lengths_of(tmp_path, positions, ServedEngine()) == lengths


def test_more_than_the_models_positions_is_refused(tmp_path):
    assert lengths_of(tmp_path, 512, ServedEngine(max_prompt_tokens=255, max_response_tokens=256)) == (
        255,
        256,
    )
    with pytest.raises(
        ConfigError,
        match=r"256 \+ engine.max_response_tokens=256 \+ 1 for the score is more than the 512 positions",
    ):
        lengths_of(tmp_path, 512, ServedEngine(max_prompt_tokens=256, max_response_tokens=256))


def test_clients_see_no_path_of_the_server():
    path = "/home/me/runs/trial/checkpoints/step-000010/export"
    digest = hashlib.sha256(path.encode()).hexdigest()
    assert named(path, path) == f"trial/step-000010@{digest[:8]}"
    assert named("/x", "models:/math/3") == "models:/math/3"
    assert named("Org/Model-7B", "Org/Model-7B") == "Org/Model-7B"


def named(path, origin):
    return weights_name(ResolvedModel(path, None, origin, ModelTokens(None, None, ())))


def test_a_tokenizer_that_cannot_decode_token_by_token_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the tokenizer of m cannot decode token by token"):
        lengths_of(tmp_path, 512, ServedEngine(), tokenizer=ByT5Tokenizer())


def lengths_of(folder, positions, engine, tokenizer=None):
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "max_position_embeddings": positions, "dtype": "float32"})
    )
    tokens = ModelTokens(tokenizer or AutoTokenizer.from_pretrained(BASE), z_token=3, eos_tokens=(2,))
    settings = served_engine_settings(ResolvedModel(str(folder), None, "m", tokens), engine)
    assert settings.dtype == "float32", "vLLM's auto would make it bfloat16"
    return settings.max_prompt_tokens, settings.max_response_tokens
