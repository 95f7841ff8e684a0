"""Engines and learner that share a GPU take turns: the run's own `Pools`, with actors that hold a GPU by name.

They are fakes, because without a GPU no engine and no learner can be made to run out of its memory. Turns with real ones, on CPU:
tests/end_to_end/test_train.py.
"""

import os
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from orchestrator.cluster.bundles import bundles_for
from orchestrator.config.schema import validate
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import ModelTokens
from orchestrator.messages.requests import EngineSettings
from orchestrator.pools import training as pools_module
from orchestrator.pools.training import Pools

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@ray.remote(num_cpus=0)
class Gpu:
    """Memory that engines or learner ranks hold, never both, until they give it back or die; keeps what happened in order."""

    def __init__(self):
        self.holders, self.events, self.deaths = {}, [], set()

    def take(self, kind, name, process):
        deadline = time.monotonic() + 10
        while others := [
            other
            for other, (held_by, pid) in self.holders.items()
            if held_by != kind and Path(f"/proc/{pid}").exists()
        ]:
            if time.monotonic() > deadline:
                raise MemoryError(f"{name} wants the GPU while it is held by {others}")
            time.sleep(0.1)  # one that was killed is a moment in dying
        self.holders[name] = kind, process
        self.events.append(f"{name} takes")

    def give(self, kind, name):
        self.holders.pop(name, None)
        self.events.append(f"{name} gives")

    def note(self, event):
        self.events.append(event)

    def history(self):
        return self.events

    def kill_next(self, method):
        self.deaths.add(method)

    def dies(self, method, kind, name):
        """Whether the caller is to die in this method: a dead process holds nothing."""
        if method not in self.deaths:
            return False
        self.deaths.discard(method)
        self.events.append(f"{name} dies")
        return True


def gpu():
    return ray.get_actor("gpu")


class Rank:
    """A learner rank: holds its GPU from its start."""

    def __init__(self, number):
        self.name = f"rank {number}"
        ray.get(gpu().take.remote("learner", self.name, os.getpid()))

    def gpu_ids(self):
        return [3]

    def ping(self):
        return 0

    def release_device(self):
        ray.get(gpu().give.remote("learner", self.name))

    def take_device(self):
        ray.get(gpu().take.remote("learner", self.name, os.getpid()))

    def step(self, batch):
        ray.get(gpu().note.remote(f"{self.name} learns"))

    def publish(self, dtype, chunk_bytes):
        return ["chunk"]


class Engine:
    """An engine: holds its GPU from its start, and says whose it shows."""

    def __init__(self, settings):
        device = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.name = f"engine on {device or 'its own'}"
        if device:  # of the learner
            ray.get(gpu().take.remote("engine", self.name, os.getpid()))

    async def ping(self):
        return 0

    async def load_weights(self, version, chunks):
        if await gpu().dies.remote("load_weights", "engine", self.name):
            os._exit(1)
        await gpu().note.remote(f"{self.name} loads {version}")

    async def sleep(self):
        if await gpu().dies.remote("sleep", "engine", self.name):
            os._exit(1)
        await gpu().give.remote("engine", self.name)

    async def wake(self, version, chunks):
        if await gpu().dies.remote("wake", "engine", self.name):
            os._exit(1)
        await gpu().take.remote("engine", self.name, os.getpid())
        await gpu().note.remote(f"{self.name} loads {version}")


class Verifier:
    def __init__(self, *arguments):
        pass

    def ping(self):
        return True


@pytest.fixture
def colocate():
    return True


@pytest.fixture
def pools(ray_cluster, monkeypatch, tmp_path, colocate):
    """One rank and one engine on one GPU."""
    held = Gpu.options(name="gpu").remote()
    monkeypatch.setattr(pools_module, "RolloutWorker", Engine)
    monkeypatch.setattr(pools_module, "VerificationWorker", Verifier)

    def start_ranks(settings, spawn, timeout_s):
        ranks = [spawn(Rank, 0, 0)]
        ray.get([rank.ping.remote() for rank in ranks])
        return ranks

    monkeypatch.setattr(pools_module, "start_ranks", start_ranks)
    tree = {
        "run": {"name": "turns", "steps": 1, "dir": str(tmp_path)},
        "model": {"path": "m"},
        "data": {"train": "t.jsonl"},
        "self_reward": {"token": "z"},
        "rollout": {"colocate": colocate, "cpus": 0.5},
        "learning": {"cpus_per_rank": 0.5},
        "verification": {"cpus": 0.5},
    }
    config = validate(tree, RunConfig, "test")
    config.folder.mkdir()
    pools = Pools(config, ModelTokens.__new__(ModelTokens), bundles_for(config, [{"CPU": 2.0}]))
    yield pools
    pools.stop()
    ray.kill(held)


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch):
    monkeypatch.setattr(
        pools_module, "engine_settings", lambda config, tokens: EngineSettings("m", (0,), 1, 8, 8, "float32")
    )
    monkeypatch.setattr(ModelTokens, "z_token", 1, raising=False)


def history():
    return ray.get(gpu().history.remote())


def test_a_step_hands_the_gpu_over_and_back(pools):
    pools.publish(0)
    pools.learn(None)
    pools.publish(1)
    assert history() == [
        "rank 0 takes", "rank 0 gives", "engine on 3 takes",  # the start: the learner makes room before an engine looks for memory
        "engine on 3 gives", "rank 0 takes", "rank 0 gives", "engine on 3 takes", "engine on 3 loads 0",  # the first weights
        "engine on 3 gives", "rank 0 takes", "rank 0 learns", "rank 0 gives", "engine on 3 takes", "engine on 3 loads 1",
    ]  # fmt: skip


def test_who_has_the_turn_already_is_not_asked_to_take_it(pools):
    pools.publish(0)
    before = history()
    pools.turn_to_engines()
    assert history() == before
    pools.learn(None)
    pools.learn(None)
    assert history()[len(before) :] == ["engine on 3 gives", "rank 0 takes", "rank 0 learns", "rank 0 learns"]


def test_an_engine_that_dies_falling_asleep_is_replaced_and_asleep_before_the_learner_takes_over(pools):
    pools.publish(0)
    before = len(history())
    ray.get(gpu().kill_next.remote("sleep"))
    pools.learn(None)
    assert history()[before:] == [
        "engine on 3 dies", "engine on 3 takes", "engine on 3 loads 0", "engine on 3 gives", "rank 0 takes", "rank 0 learns",
    ]  # fmt: skip
    assert pools.restarts == 1


def test_an_engine_that_does_not_wake_is_replaced_with_the_newest_weights(pools):
    pools.publish(0)
    pools.learn(None)
    ray.get(gpu().kill_next.remote("wake"))
    before = len(history())
    pools.publish(1)
    pools.wait_ready()
    assert history()[before:] == [
        "rank 0 gives",
        "engine on 3 dies",
        "engine on 3 takes",
        "engine on 3 loads 1",
    ]


@pytest.mark.parametrize("with_engine", [False, True])
def test_ranks_that_died_start_again_with_new_engines_whether_or_not_these_went_with_them(pools, with_engine):
    pools.publish(0)
    pools.rollouts.submit("generate", "what was being generated")
    before = len(history())
    ray.kill(pools.learners[0])
    if with_engine:
        ray.kill(pools.rollouts.workers[0].actor)
    with pytest.raises(RayActorError) as death:
        pools.learn(None)
    pools.restart_learners(death.value)
    pools.publish(0)
    pools.wait_ready()
    again = ["rank 0 takes", "rank 0 gives", "engine on 3 takes"]
    assert history()[-8:] == [*again, "engine on 3 gives", *again, "engine on 3 loads 0"]
    assert len(history()) - before <= 9, "and before that, an engine that lived may have gone to sleep"
    assert not pools.rollouts.outstanding
    assert pools.restarts == 1 + with_engine


@pytest.mark.parametrize("colocate", [False])
def test_engines_that_die_of_lost_weights_wait_for_new_ranks(pools):
    """The chunks of a dead owner may be readable in part, so that each replacement would die of them too."""
    pools.publish(0)
    pools.wait_ready()
    ray.kill(pools.learners[0])
    ray.get(gpu().kill_next.remote("load_weights"))
    assert pools.rollouts.broadcast("load_weights", 1, pools.chunks) == []
    with pytest.raises(RayActorError) as death:
        pools.wait_ready()
    assert pools.rollouts.restarts == 1
    pools.restart_learners(death.value)
    pools.publish(0)
    pools.wait_ready()
    assert history()[-2:] == ["rank 0 takes", "engine on its own loads 0"]
    assert pools.rollouts.restarts == 1
