"""Rounds for the ranks beside generation: small real actors in real pools."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError

from orchestrator.messages.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.trajectories import Generated, pack
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import Collection, Group
from orchestrator.pools.events import run_until, run_while
from orchestrator.pools.pool import Pool
from orchestrator.pools.ranks import call_ranks, values_of
from orchestrator.pools.watch import Watch
from orchestrator.training.stream_plan import StreamPlan
from orchestrator.training.streaming import RankRounds
from tests.settings import configure

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures("ray_cluster")

PROMPTS, LONGEST_S = 4, 30.0


class UnevenEngine:
    """Its first group ends when the gate's file exists, and the others at once."""

    def __init__(self, gate):
        self.gate = gate

    def ping(self):
        return True

    def generate(self, request):
        deadline = time.monotonic() + LONGEST_S
        while request.seed == 0 and not self.gate.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        packed = pack(request.prompt_ids, [Generated([5] * 8, [-1.0] * 8, True, -1.0, (0, 0))] * 4)
        return packed, ["text"] * 4, packed.summary()


class Halves:
    def ping(self):
        return True

    def verify(self, texts, finished, problem):
        return [Verdict(Status.CORRECT if i % 2 else Status.WRONG, text) for i, text in enumerate(texts)]


class NotingRank:
    """Keeps the rounds that it gets; opens the gate after all terms of the other groups' samples."""

    def __init__(self, gate, fails=False):
        self.rounds, self.gate, self.fails = [], gate, fails

    def ping(self):
        return True

    def stream(self, part):
        if self.fails:
            raise ValueError("no room")
        self.rounds.append((part.number, part.term.value, part.batch.mini_batches[0].plan))
        samples = sum(len(micro) for _, _, plan in self.rounds for rank in plan for micro in rank)
        if samples == 2 * (PROMPTS - 1) * 4:
            self.gate.touch()

    def noted(self):
        return self.rounds


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


@pytest.fixture
def pools(gate):
    def pool(name, cls, *arguments):
        options = ray.remote(cls).options(num_cpus=0, max_concurrency=8)
        return Pool(name, lambda index: options.remote(*arguments), 1, 8)

    rollouts, verifiers = pool("rollout", UnevenEngine, gate), pool("verification", Halves)
    rollouts.wait_ready(60)
    yield rollouts, verifiers
    rollouts.stop()
    verifiers.stop()


def rounds_of(collection, ranks, pools, alpha=0.5):
    """The rounds of a step of small micro-batches; every second sample is better than the others."""
    config = configure(
        rollout={
            "prompts_per_step": PROMPTS,
            "samples_per_prompt": 4,
            "max_prompt_tokens": 2,
            "max_response_tokens": 8,
        },
        learning={"num_ranks": len(ranks), "tokens_per_micro_batch": 40, "stream": True},
        loss={"tau": 0.0, "alpha": alpha},
    )

    def wait_for_ranks(method, refs):
        run_while(refs, *pools)
        values_of(ranks, refs)

    def estimate(group):
        return group.rewards - np.float32(0.5), np.full(len(group.rewards), -20.0, np.float32)

    driver = SimpleNamespace(
        learners=ranks,
        rank_watch=Watch(together=True),
        wait_for_ranks=wait_for_ranks,
        on_all_ranks=lambda method, *arguments: call_ranks(ranks, method, *arguments),
    )
    return RankRounds(StreamPlan(config, step=1), driver, collection, estimate)


def groups():
    return [Group(Problem.from_text(str(n), "p", "1"), GroupRequest([1, 2], 4, n)) for n in range(PROMPTS)]


def test_ranks_learn_what_has_landed_while_others_are_generated(pools, gate):
    ranks = [ray.remote(NotingRank).options(num_cpus=0).remote(gate) for _ in range(2)]
    collection = Collection(*pools, groups())
    rounds = rounds_of(collection, ranks, pools)
    run_until(lambda: collection.is_complete, *pools, rounds)
    streamed = rounds.complete()
    first, second = ray.get([rank.noted.remote() for rank in ranks])
    assert gate.exists(), "the slow group ended because the others had been learned"
    assert first == second, "the ranks agree"
    assert [each[0] for each in first] == list(range(streamed.rounds))
    assert {each[1] for each in first} == {"policy", "correct", "wrong"}
    learned = streamed.learned.reshape(PROMPTS, 4)
    assert learned[1:].all(), "every term of a sample that was begun"
    assert not learned[0].any(), "the slow group is left to the step"
    by_term = {term: [] for term in ("policy", "correct", "wrong")}
    for _, term, plan in first:
        by_term[term] += [sample for rank in plan for micro in rank for sample in micro]
    assert sorted(by_term["policy"]) == list(range(4, 16)), "each sample once"
    assert sorted(by_term["correct"] + by_term["wrong"]) == list(range(4, 16))


def test_a_rank_that_fails_ends_the_wait(pools, gate):
    ranks = [ray.remote(NotingRank).options(num_cpus=0).remote(gate, fails=True)]
    collection = Collection(*pools, groups())
    rounds = rounds_of(collection, ranks, pools)
    with pytest.raises(RayTaskError, match="no room"):
        run_until(lambda: collection.is_complete, *pools, rounds)
