"""A real vLLM engine that gets new weights before its decode steps, while it generates.

Two models share all layers but the head. So hidden states do not depend on which of them computed the KV
cache, and one forward pass of each tells the log-prob of every token under either.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from actors.engine import Engine
from actors.rollout import RolloutWorker
from orchestrator.messages.requests import EngineSettings, GroupRequest
from orchestrator.messages.trajectories import Trajectories
from orchestrator.messages.weights import WeightChunk, pack_chunks

pytestmark = pytest.mark.usefixtures("ray_cluster")

TOLERANCE = 1e-4
MAX_RESPONSE = 24
EOS = (2, *range(40, 60))
"""So many that a random model ends most of its responses."""
GROUPS, SAMPLES = 4, 8
SMALL_CACHE = {"block_size": 32, "num_gpu_blocks_override": 20}
"""Less than the samples need: some lose their memory while they run, also between EOS and z_c, and are
computed again."""

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class SwappingEngine(Engine):
    """Loads the next of `turns` before every n-th decode step; without any it is a plain engine."""

    turns: Sequence[list[WeightChunk]] = ()
    every = 1
    steps = 0

    def _run_commands(self, wait: bool) -> None:
        super()._run_commands(wait)
        self.steps += 1
        if self.turns and self.steps % self.every == 0 and self.engine.has_unfinished_requests():
            following = self.version + 1
            self._load_weights(following, self.turns[following % len(self.turns)])


class SwappingWorker(RolloutWorker):
    """The engine as an actor that is told its turns."""

    def __init__(self, settings: EngineSettings) -> None:
        self.engine = SwappingEngine(settings)
        self.preempted = 0
        scheduler = self.engine.engine.engine_core.engine_core.scheduler
        preempt = scheduler._preempt_request

        def counted(*arguments: Any, **options: Any) -> None:
            self.preempted += 1
            preempt(*arguments, **options)

        scheduler._preempt_request = counted

    async def take_turns(self, turns: Sequence[list[WeightChunk]], every: int) -> int:
        """Returns how often a request has lost its memory so far."""
        await self.engine.ping()
        self.engine.turns, self.engine.every = turns, every
        return self.preempted


@pytest.fixture(scope="module")
def pair(models: dict[str, Path]) -> list[Qwen2ForCausalLM]:
    """The untied model, and one with another head."""
    first, second = (
        Qwen2ForCausalLM.from_pretrained(models["untied"], dtype=torch.float32) for _ in range(2)
    )
    torch.manual_seed(3)
    with torch.no_grad():
        head = second.lm_head.weight
        head.add_(0.5 * head.std() * torch.randn_like(head))
    return [first, second]


@pytest.fixture(scope="module")
def tokenizer(models: dict[str, Path]) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(models["untied"])


@pytest.fixture(scope="module")
def prompt(tokenizer: AutoTokenizer) -> list[int]:
    chat = [{"role": "user", "content": "1+2=?" * 4}]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


@pytest.fixture(scope="module")
def z_token(tokenizer: AutoTokenizer) -> int:
    return tokenizer.convert_tokens_to_ids("<|self_reward|>")


@pytest.fixture(scope="module")
def worker(models: dict[str, Path], z_token: int) -> Iterator[ray.actor.ActorHandle]:
    settings = EngineSettings(
        str(models["untied"]),
        EOS,
        z_token,
        max_prompt_tokens=32,
        max_response_tokens=MAX_RESPONSE,
        dtype="float32",
        engine_args={"enforce_eager": True} | SMALL_CACHE,
    )
    options = {"num_cpus": 1, "max_concurrency": 100, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    actor = ray.remote(SwappingWorker).options(**options).remote(settings)
    yield actor
    ray.kill(actor)


def chunks_of(model: Qwen2ForCausalLM) -> list[WeightChunk]:
    """All weights, each chunk copied before the next one is packed in its memory."""
    packed = pack_chunks(model.named_parameters(), torch.float32, 2**20, {})
    return [replace(chunk, data=chunk.data.copy()) for chunk in packed]


def generate(
    worker: ray.actor.ActorHandle, prompt: list[int], turns: Sequence[Qwen2ForCausalLM], every: int = 1
) -> list[Trajectories]:
    """Groups sampled while the weights take turns."""
    before = ray.get(worker.take_turns.remote([chunks_of(model) for model in turns], every))
    requests = [GroupRequest(prompt, num_samples=SAMPLES, seed=1000 * number) for number in range(GROUPS)]
    groups = [result[0] for result in ray.get([worker.generate.remote(one) for one in requests])]
    assert ray.get(worker.take_turns.remote([], 1)) > before, "memory was scarce"
    return groups


@pytest.mark.parametrize("every", [1, 2])
def test_each_token_and_score_is_that_of_its_version(
    worker: ray.actor.ActorHandle, prompt: list[int], pair: list[Qwen2ForCausalLM], z_token: int, every: int
) -> None:
    groups = generate(worker, prompt, pair, every)
    assert [len(group) for group in groups] == [SAMPLES] * GROUPS, "no swap drops a sample"
    finished, of_the_other_version = 0, []
    for group in groups:
        for index in range(len(group)):
            sample, versions = group.sample(index), group.versions[group.span(index)].astype(np.int64)
            assert (np.diff(versions) >= (every == 1)).all(), "no token is older than the one before"
            tokens = np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int64)
            with torch.no_grad():
                inputs = torch.from_numpy(tokens)[None]
                both = np.stack([model(inputs).logits[0].log_softmax(-1).numpy() for model in pair])
            both = both[:, len(prompt) - 1 :]
            expected = both[versions % 2, np.arange(len(versions)), tokens[len(prompt) :]]
            np.testing.assert_allclose(sample.logprobs, expected, atol=TOLERANCE)
            if sample.finished:
                own, other = both[versions[-1] % 2, -1, z_token], both[1 - versions[-1] % 2, -1, z_token]
                assert sample.z_logprob == pytest.approx(own, abs=TOLERANCE), "EOS and score share a version"
                of_the_other_version.append(abs(sample.z_logprob - other))
                finished += 1
    assert finished > GROUPS * SAMPLES // 2
    assert np.median(of_the_other_version) > 100 * TOLERANCE, "the two versions give different scores"


@pytest.mark.long
def test_swaps_change_no_sampled_token(
    worker: ray.actor.ActorHandle, prompt: list[int], pair: list[Qwen2ForCausalLM]
) -> None:
    generate(worker, prompt, pair[:1])  # so that both runs have the same weights
    still, swapped = generate(worker, prompt, []), generate(worker, prompt, pair[:1])
    for one, other in zip(still, swapped, strict=True):
        np.testing.assert_array_equal(one.response_ids, other.response_ids)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE)
        np.testing.assert_allclose(one.z_logprobs, other.z_logprobs, atol=TOLERANCE)
    assert len(np.unique(np.concatenate([group.versions for group in still]))) == 1
