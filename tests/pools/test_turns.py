"""Engines and learner that share a GPU take turns: the real `Pools` with actors of tests/fakes.py."""

import pytest
import ray
from ray.exceptions import RayActorError

from orchestrator.cluster.bundles import bundles_for
from orchestrator.data.tokens import ModelTokens
from orchestrator.pools import ranks
from orchestrator.pools.training import Pools
from tests.fakes import FAKES, FakeGpu, gpu
from tests.settings import configure


@pytest.fixture
def colocate():
    return True


@pytest.fixture
def pools(ray_cluster, tmp_path, colocate):
    """One rank and one engine on one GPU."""
    held = FakeGpu.options(name="gpu").remote()
    config = configure(
        run={"dir": str(tmp_path)},
        rollout={"colocate": colocate, "cpus": 0.5},
        learning={"cpus_per_rank": 0.5},
        verification={"cpus": 0.5},
    )
    config.folder.mkdir()
    tokens = ModelTokens(tokenizer=None, z_token=1, eos_tokens=(0,))
    pools = Pools(config, tokens, bundles_for(config, [{"CPU": 2.0}]), workers=FAKES)
    yield pools
    pools.stop()
    ray.kill(held)


def history():
    return ray.get(gpu().history.remote())


def test_a_step_hands_the_gpu_over_and_back(pools):
    pools.publish(0)
    pools.learn(None)
    pools.publish(1)
    assert history() == [
        # The start: the learner releases its memory before the engine measures what is free.
        "rank 0 takes", "rank 0 gives", "engine on 3 takes",
        # The first weights.
        "engine on 3 gives", "rank 0 takes", "rank 0 gives", "engine on 3 takes", "engine on 3 loads 0",
        # A step.
        "engine on 3 gives", "rank 0 takes", "rank 0 learns",
        "rank 0 gives", "engine on 3 takes", "engine on 3 loads 1",
    ]  # fmt: skip


def test_a_turn_is_taken_once(pools):
    pools.publish(0)
    before = history()
    pools.turn_to_engines()
    assert history() == before
    pools.learn(None)
    pools.learn(None)
    assert history()[len(before) :] == ["engine on 3 gives", "rank 0 takes", "rank 0 learns", "rank 0 learns"]


def test_the_learner_waits_for_the_replacement_of_an_engine_that_dies_in_sleep(pools):
    pools.publish(0)
    before = len(history())
    ray.get(gpu().kill_next.remote("sleep"))
    pools.learn(None)
    assert history()[before:] == [
        "engine on 3 dies", "engine on 3 takes", "engine on 3 loads 0",
        "engine on 3 gives", "rank 0 takes", "rank 0 learns",
    ]  # fmt: skip
    assert pools.restarts == 1


def test_the_replacement_of_an_engine_that_dies_in_wake_gets_the_newest_weights(pools):
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
def test_new_ranks_come_with_new_engines(pools, with_engine):
    pools.publish(0)
    pools.rollouts.submit("generate", "a request")
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
    assert len(history()) - before <= 9, "a living engine may have released the GPU first"
    assert not pools.rollouts.outstanding
    assert pools.restarts == 1 + with_engine


@pytest.mark.parametrize("colocate", [False])
def test_engines_that_need_lost_weights_wait_for_new_ranks(pools):
    """Some chunks of a dead owner may still be readable: each replacement would fail half-way, too."""
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


@pytest.mark.parametrize("colocate", [False])
def test_a_rank_that_dies_while_it_starts_is_started_once_more(pools):
    notes = []
    pools.tell(notes.append)
    ray.kill(pools.learners[0])
    with pytest.raises(RayActorError) as death:
        pools.learn(None)
    ray.get(gpu().kill_next.remote("setup"))
    pools.restart_learners(death.value)
    pools.learn(None)
    assert history()[-4:] == ["rank 0 takes", "rank 0 dies", "rank 0 takes", "rank 0 learns"]
    assert "the ranks start once more: one died while they started" in notes[-1]


def test_ranks_that_die_in_both_starts_end_with_the_first_cause(monkeypatch):
    deaths = [RayActorError(), RayActorError()]
    left = list(deaths)

    def dies(*_):
        raise left.pop(0)

    monkeypatch.setattr(ranks, "_start_once", dies)
    with pytest.raises(RayActorError) as death:
        ranks.start_ranks(None, None, note=lambda _: None)
    assert death.value is deaths[0]
    assert left == []
