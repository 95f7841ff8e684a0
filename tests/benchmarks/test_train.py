"""The benchmark of training: its work, the settings of its contenders, and how it compares runs."""

import math

import pytest

from benchmarks import train, work
from orchestrator.config.schema import validate
from orchestrator.config.training import RunConfig


def measured(contender, samples_per_s):
    return train.Measured(
        contender=contender,
        cores=2,
        dtype="float32",
        samples_per_s=samples_per_s,
        tokens_per_s=100 * samples_per_s,
        step_s=128 / samples_per_s,
        setup_s=20,
        peak_gib=3,
        own_cores=2,
        foreign_cores=0,
        tokens_per_sample=100,
        reward=0.2,
        parts={},
    )


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_the_settings_are_a_run_that_saves_no_work(tmp_path, alpha):
    settings = work.run_settings(tmp_path, tmp_path, 3, 2, "float32", "bfloat16", alpha)
    config = validate(settings, RunConfig, "test")
    assert config.samples_per_step == 128
    assert config.learning.mini_batches == 1
    assert not config.learning.skip_zero_gradients


def test_every_addition_names_keys_that_exist(tmp_path):
    settings = work.run_settings(tmp_path, tmp_path, 3, 2, "float32", "float32", 0.0)
    sections = validate(settings, RunConfig, "test").model_dump()
    for addition in train.ADDITIONS.values():
        for key in addition:
            section, _, name = key.partition(".")
            assert name in sections[section]


@pytest.mark.parametrize(
    ("contender", "known"),
    [
        ("ours+stale1+laser+learning.dtype=bfloat16", True),
        ("trl-vllm+correction", True),
        ("ours+fast", False),
        ("trl-hf+correction", False),
    ],
)
def test_contenders_have_known_additions(contender, known):
    assert bool(train.CONTENDER.fullmatch(contender)) == known


def test_ratios_are_medians_over_pairs_to_the_fastest_rival(capsys):
    rounds = [
        [measured("ours", 30.0), measured("trl-vllm", 10.0), measured("trl-hf", 5.0)],
        [measured("trl-hf", 5.0), measured("trl-vllm", 20.0), measured("ours", 30.0)],
        [measured("ours", 40.0), measured("trl-vllm", 20.0), measured("trl-hf", 5.0)],
    ]
    found = train.compare(rounds)
    assert found["ours"]["samples_per_s_ratio"] == 2.0
    assert found["ours"]["samples_per_s_ratio_low"] == 1.5
    assert found["ours"]["samples_per_s_ratio_high"] == 3.0
    assert found["trl-vllm"]["samples_per_s_ratio"] == 1.0
    assert "Ratios to trl-vllm" in capsys.readouterr().out


def test_the_wider_model_computes_the_same():
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    narrow = {
        "vocab_size": 11,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }
    small = Qwen2ForCausalLM(Qwen2Config(**narrow))
    with torch.no_grad():
        for weight in small.parameters():
            weight.add_(torch.randn_like(weight) / math.sqrt(weight.shape[-1]))
    wide = narrow | {key: 2 * narrow[key] for key in work.WIDTHS}
    large = Qwen2ForCausalLM(Qwen2Config(**wide))
    large.load_state_dict({name: work.widened(name, weight) for name, weight in small.state_dict().items()})
    tokens = torch.randint(11, (2, 9))
    torch.testing.assert_close(large(tokens).logits, small(tokens).logits, atol=1e-4, rtol=1e-4)
