"""What loading into ZeRO-3 shards must not change."""

import pytest
import torch
from transformers import Gemma3TextConfig, Gemma3TextModel, LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from actors.zero3 import restore_rotary_frequencies

SIZES = {
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (Qwen2Model, Qwen2Config(**SIZES)),
        (LlamaModel, LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
        (Gemma3TextModel, Gemma3TextConfig(**SIZES)),
    ],
)
def test_rotary_frequencies_rounded_while_loading_are_float32_again(model_class, config):
    model = model_class(config)
    expected = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    assert expected
    model.bfloat16()
    restore_rotary_frequencies(model)
    for name, buffer in model.named_buffers():
        if name in expected:
            torch.testing.assert_close(buffer, expected[name], rtol=0, atol=0)
    assert next(model.parameters()).dtype == torch.bfloat16
