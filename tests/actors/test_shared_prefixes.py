"""Shared prefixes change no log-prob and no gradient but by rounding."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from actors.shared_prefixes import ATTENTION, pack_rows, register_attention
from actors.zero3 import LogProbModel
from orchestrator.data.tokens import refuse_attention_windows
from orchestrator.errors import ConfigError

SIZES = {
    "vocab_size": 12,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
# Two groups with prompts of their own; the samples of the first one share a response token, too. 0 pads.
ROWS = torch.tensor(
    [
        [1, 2, 3, 4, 5, 6, 7],
        [1, 2, 3, 4, 8, 0, 0],
        [1, 2, 3, 9, 0, 0, 0],
        [5, 2, 3, 4, 5, 6, 0],
        [5, 2, 0, 0, 0, 0, 0],
    ]
)
LENGTHS = (7, 5, 4, 6, 2)
READ = torch.tensor([[2 <= column < end or column == end - 1 for column in range(7)] for end in LENGTHS])


def test_common_tokens_are_packed_once():
    packed = pack_rows(ROWS, READ)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 2, 3, 4, 5, 6]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 4, 3, 0, 1, 2, 3, 4, 5]]
    assert packed.place.tolist() == [
        [0, 1, 2, 3, 4, 5, 6],
        [0, 1, 2, 3, 7, 0, 0],
        [0, 1, 2, 8, 0, 0, 0],
        [9, 10, 11, 12, 13, 14, 0],
        [9, 10, 0, 0, 0, 0, 0],
    ]
    assert packed.first.tolist() == [0, 1, 2, 3, 4, 5, 6, 11, 17, 21, 22, 23, 24, 25, 26]


def results(model, shares):
    policy = LogProbModel(copy.deepcopy(model), shares_prefixes=shares)
    torch.manual_seed(1)
    targets = torch.randint(12, (int(READ.sum()),))
    logprobs, entropy = policy(ROWS, READ, targets)
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
    return logprobs.detach(), entropy, gradients


@pytest.mark.parametrize("config_class", [Qwen2Config, Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradients_are_those_of_separate_rows(config_class, checkpointing):
    register_attention()
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config_class(**SIZES), attn_implementation="sdpa").float()
    shared = AutoModelForCausalLM.from_config(config_class(**SIZES), attn_implementation=ATTENTION).float()
    shared.load_state_dict(plain.state_dict())
    if checkpointing:
        shared.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        shared.train()
    expected, found = results(plain, shares=False), results(shared, shares=True)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)
    for name, gradient in expected[2].items():
        torch.testing.assert_close(found[2][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("config", [Gemma3TextConfig(**SIZES), MistralConfig(**SIZES, sliding_window=4)])
def test_models_that_attend_to_a_window_are_refused(tmp_path, config):
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"share: .* set share=false"):
        refuse_attention_windows(str(tmp_path), "share")


@pytest.mark.parametrize("config", [Qwen2Config(**SIZES), Qwen3Config(**SIZES), LlamaConfig(**SIZES)])
def test_models_that_attend_to_everything_are_accepted(tmp_path, config):
    config.save_pretrained(tmp_path)
    assert refuse_attention_windows(str(tmp_path), "share") is None
