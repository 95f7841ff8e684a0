"""The settings that an engine starts with, from the section `rollout` of a training run or an evaluation."""

import pytest

from orchestrator.config.training import EngineConfig, RolloutConfig
from orchestrator.messages.requests import EngineSettings
from orchestrator.pools.start import engine_settings

MODEL = {"model_path": "/m", "dtype": "bfloat16", "eos_tokens": (2, 3), "z_token": 7}


@pytest.mark.parametrize("section", [EngineConfig, RolloutConfig])
def test_an_engine_gets_the_section_and_the_model(section):
    engine = section(
        max_prompt_tokens=5,
        max_response_tokens=9,
        tensor_parallel=2,
        gpus=1,
        cpus=2.5,
        kv_cache_gib=0.25,
        engine_args={"max_num_seqs": 4},
    )
    assert engine_settings(engine, **MODEL) == EngineSettings(
        model_path="/m",
        eos_tokens=(2, 3),
        z_token=7,
        max_prompt_tokens=5,
        max_response_tokens=9,
        dtype="bfloat16",
        tensor_parallel=2,
        threads=2,
        kv_cache_gib=0.25,
        on_gpu=True,
        sleeps=False,
        engine_args={"max_num_seqs": 4},
    )


def test_a_caller_may_know_the_longest_prompt_and_response():
    """An evaluation reserves room for its own problems, not for the longest that are allowed."""
    engine = EngineConfig(max_prompt_tokens=5, max_response_tokens=9, cpus=0.5)
    found = engine_settings(engine, **MODEL, max_prompt_tokens=3, max_response_tokens=1, sleeps=True)
    assert (found.max_prompt_tokens, found.max_response_tokens) == (3, 1)
    assert (found.threads, found.on_gpu, found.sleeps) == (1, False, True)
