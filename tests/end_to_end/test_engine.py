"""A real vLLM engine against a float32 forward pass in transformers: behaviour log-probs and the one-pass
score, token for token.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError
from transformers import AutoTokenizer, Qwen2ForCausalLM

from actors.rollout import RolloutWorker
from orchestrator.messages.requests import EngineSettings, GroupRequest
from orchestrator.messages.trajectories import Trajectories
from orchestrator.messages.weights import WeightChunk, pack_chunks
from orchestrator.pools.pool import Pool

pytestmark = pytest.mark.usefixtures("ray_cluster")

TOLERANCE = 1e-4
MAX_RESPONSE = 24
UPDATES = 10


# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, models: dict[str, Path]) -> Path:
    return models[request.param]


@pytest.fixture(scope="module")
def ids(folder: Path) -> dict:
    return token_ids(folder)


def token_ids(folder: Path) -> dict:
    """z_c, a prompt, and so many EOS tokens that a random model ends most of its responses."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2=?"}], add_generation_prompt=True, return_dict=False
    )
    return {
        "z": tokenizer.convert_tokens_to_ids("<|self_reward|>"),
        "prompt": list(prompt),
        "eos": (2, *range(40, 60)),
    }


@pytest.fixture(scope="module")
def engine(folder: Path, ids: dict) -> Iterator[ray.actor.ActorHandle]:
    actor = start(folder, ids)
    yield actor
    ray.kill(actor)


def start(folder: Path, ids: dict) -> ray.actor.ActorHandle:
    settings = EngineSettings(
        str(folder),
        ids["eos"],
        ids["z"],
        max_prompt_tokens=32,
        max_response_tokens=MAX_RESPONSE,
        dtype="float32",
        engine_args={"enforce_eager": True},
    )
    worker = ray.remote(RolloutWorker).options(
        num_cpus=1, max_concurrency=100, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}
    )
    return worker.remote(settings)


def generate(
    engine: ray.actor.ActorHandle, ids: dict, groups: int = 4
) -> list[tuple[Trajectories, list[str]]]:
    requests = [GroupRequest(ids["prompt"], num_samples=8, seed=1000 * number) for number in range(groups)]
    return [result[:2] for result in ray.get([engine.generate.remote(request) for request in requests])]


def load(
    engine: ray.actor.ActorHandle, model: Qwen2ForCausalLM, version: int, method: str = "load_weights"
) -> None:
    swap = ray.get(getattr(engine, method).remote(version, [ray.put(chunk) for chunk in chunks_of(model)]))
    assert swap.arguments == {"version": version}
    assert 0 < swap.seconds < 60


def chunks_of(model: Qwen2ForCausalLM) -> list[WeightChunk]:
    """The model's parameters as the learner sends them: a tied head once, under two names."""
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if model.config.tie_word_embeddings else {}
    chunks = pack_chunks(model.named_parameters(), torch.float32, chunk_bytes=50_000, tied=tied)
    return [replace(chunk, data=chunk.data.copy()) for chunk in chunks]


@torch.no_grad()
def assert_equals_forward_pass(model: Qwen2ForCausalLM, group: Trajectories, z: int) -> None:
    for index in range(len(group)):
        sample = group.sample(index)
        tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int64))
        logprobs = model(tokens[None]).logits[0].float().log_softmax(-1)
        start = len(sample.prompt_ids) - 1
        expected = logprobs[start:-1].gather(1, tokens[start + 1 :, None]).squeeze(1)
        np.testing.assert_allclose(sample.logprobs, expected.numpy(), atol=TOLERANCE)
        if sample.finished:
            assert group.z_logprobs[index] == pytest.approx(logprobs[-1, z].item(), abs=TOLERANCE)


def test_one_pass_score_and_behaviour_log_probs_equal_a_forward_pass_also_after_ten_weight_updates(
    engine: ray.actor.ActorHandle, folder: Path, ids: dict
) -> None:
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert ray.get(engine.ping.remote()) == -1
    load(engine, model, version=0)
    before = generate(engine, ids)
    for group, _ in before:
        assert_equals_forward_pass(model, group, ids["z"])

    torch.manual_seed(1)
    for version in range(1, UPDATES + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * parameter.std() * torch.randn_like(parameter))
        if version == UPDATES:  # after the learner's turn
            ray.get(engine.sleep.remote())
            load(engine, model, version, "wake")
        else:
            load(engine, model, version)
    after = generate(engine, ids)
    for group, _ in after:
        assert_equals_forward_pass(model, group, ids["z"])
        assert (group.versions == UPDATES).all()
    with pytest.raises(AssertionError, match="Not equal"):
        assert_equals_forward_pass(
            Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32), after[0][0], ids["z"]
        )

    # As good as new: an engine that loads the final weights from disk samples the same tokens from the same
    # seeds.
    updated = folder.parent / f"{folder.name}-updated"
    model.save_pretrained(updated)
    AutoTokenizer.from_pretrained(folder).save_pretrained(updated)
    fresh = start(updated, ids)
    for (group, texts), (fresh_group, fresh_texts) in zip(after, generate(fresh, ids), strict=True):
        np.testing.assert_array_equal(group.response_ids, fresh_group.response_ids)
        np.testing.assert_allclose(group.z_logprobs, fresh_group.z_logprobs, atol=TOLERANCE)
        assert texts == fresh_texts
    ray.kill(fresh)


def test_finished_truncated_and_several_eos(engine: ray.actor.ActorHandle, ids: dict) -> None:
    groups = [group for group, _ in generate(engine, ids, groups=16)]
    finished = np.concatenate([group.finished for group in groups])
    assert 0.2 < finished.mean() < 1.0, "the test needs both finished and truncated samples"
    ends = set()
    for group in groups:
        for index in range(len(group)):
            sample = group.sample(index)
            *inside, last = sample.response_ids.tolist()
            assert ids["z"] not in sample.response_ids, (
                "z_c is barred from solutions and is no part of a response"
            )
            assert not set(inside) & set(ids["eos"]), "a response ends at its first EOS"
            assert sample.finished == (last in ids["eos"])
            assert math.isnan(group.z_logprobs[index]) == (not sample.finished)
            assert sample.finished or len(sample.response_ids) == MAX_RESPONSE
            ends |= {last} & set(ids["eos"])
    assert len(ends) > 1, "every EOS token ends a response"


def test_an_engine_that_falls_asleep_drops_what_nobody_waits_for_any_more(
    engine: ray.actor.ActorHandle, folder: Path, ids: dict
) -> None:
    engine.generate.remote(GroupRequest(ids["prompt"], num_samples=64, seed=1))
    ray.get(engine.sleep.remote())
    load(engine, Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32), 99, "wake")
    ((group, _),) = generate(engine, ids, groups=1)
    assert (group.versions == 99).all()


class Owner:
    """Puts weights into the object store, as rank 0 does; they go when it dies."""

    def put(self, chunk: WeightChunk) -> list[ray.ObjectRef]:
        return [ray.put(chunk)]


def test_an_engine_whose_weight_update_fails_half_way_is_replaced(models: dict[str, Path]) -> None:
    """vLLM would refuse every later update, and the weights would be a mix of two versions."""
    folder = models["untied"]
    ids = token_ids(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    first, second, *others = [ray.put(chunk) for chunk in chunks_of(model)]
    weights = [first, second, *others]
    assert others
    pool = Pool(
        "rollout",
        lambda index: start(folder, ids),
        1,
        capacity=1,
        refresh=lambda engine: engine.load_weights.remote(0, weights),
    )
    try:
        pool.wait_ready(240)
        lost = lost_chunk(ray.get(second))
        with pytest.raises(ObjectLostError):
            pool.broadcast("load_weights", 1, [lost, second, *others])
        assert (pool.restarts, pool.broadcast("ping")) == (0, [0]), (
            "nothing had changed when the first chunk was missing"
        )
        assert pool.broadcast("load_weights", 1, [first, lost, *others]) == []
        assert pool.restarts == 1
        pool.wait_ready(240)
        [swap] = pool.broadcast("load_weights", 2, weights)
        assert swap.arguments == {"version": 2}
        ((group, _),) = generate(pool.workers[0].actor, ids, groups=1)
        assert_equals_forward_pass(model, group, ids["z"])
    finally:
        pool.stop()


def lost_chunk(chunk: WeightChunk) -> ray.ObjectRef:
    """A chunk whose owner has died."""
    owner = ray.remote(Owner).options(num_cpus=0).remote()
    [ref] = ray.get(owner.put.remote(chunk))
    ray.kill(owner)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ray.get(ref, timeout=1)
        except ObjectLostError:
            return ref
        except GetTimeoutError:
            pass
        time.sleep(0.1)
    raise AssertionError("the chunk has outlived its owner")
