"""How ZeRO-3 ranks meet and start, and what loading into shards must not change."""

import os
import socket
import sys
import time
from types import SimpleNamespace

import pytest
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from transformers import Gemma3TextConfig, Gemma3TextModel, LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from actors.process_group import open_store
from actors.zero3 import padding_token, restore_rotary_frequencies
from orchestrator.pools.ranks import learner_settings, start_ranks
from tests.settings import configure

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

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


@pytest.mark.parametrize(("pad", "eos", "expected"), [(0, 2, 0), (5, 2, 5), (None, 2, 2), (None, None, 0)])
def test_a_tokenizer_without_padding_pads_with_eos(pad, eos, expected):
    assert padding_token(SimpleNamespace(pad_token_id=pad, eos_token_id=eos)) == expected


@pytest.fixture
def config():
    return configure(learning={"num_ranks": 2})


def test_no_other_process_can_take_the_port_at_which_the_ranks_meet():
    """Not even in the seconds in which the ranks import their packages."""
    store = open_store("127.0.0.1")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", store.port))


class Rank:
    """A rank; the second one dies while it joins. A fake: a real one cannot be made to die just then."""

    def __init__(self, *arguments):
        self.rank = arguments[-1]

    def open_store(self):
        return "localhost", 1

    def setup(self, address, port):
        if self.rank == 1:
            time.sleep(
                1
            )  # its peer fails first, as with a connection that breaks before Ray has noticed the death
            os._exit(1)
        raise RuntimeError("connection closed by peer")

    def ping(self):
        return self.rank


def test_a_rank_that_dies_while_the_ranks_join_is_reported_as_a_death(ray_cluster, config):
    with pytest.raises(RayActorError) as failure:
        start_ranks(
            learner_settings(config, None),
            lambda cls, rank, *arguments: ray.remote(Rank).options(num_cpus=0).remote(*arguments),
            60,
        )
    assert not isinstance(failure.value, RayTaskError)
