"""Batches ahead of learning, from small workers in real pools; the session around them is a fake."""

import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import ray

from orchestrator.messages.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.trajectories import Generated, pack
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import Group
from orchestrator.pools.pool import Pool
from orchestrator.training.batches import batches
from orchestrator.training.session import Clock

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS, PROMPTS = 5, 3


class VersionedEngine:
    """Its samples say which weights it has. The first group of a step takes longer than the others."""

    def __init__(self):
        self.version = -1

    def ping(self):
        return True

    def load_weights(self, version):
        self.version = version

    def generate(self, request):
        version = self.version
        time.sleep(0.3 if request.seed % PROMPTS == 0 else 0.01)
        samples = [Generated([request.seed], [-1.0], True, -1.0, (version, version))] * 2
        packed = pack(request.prompt_ids, samples)
        return packed, ["text", "text"], packed.summary()


class Approves:
    def ping(self):
        return True

    def verify(self, texts, finished, reference):
        return [Verdict(Status.CORRECT, text) for text in texts]


class FakeSession:
    """The parts of a session that `batches` uses; it keeps which steps the engines got, and when."""

    def __init__(self, rollouts, verifiers):
        self.pools = SimpleNamespace(rollouts=rollouts, verifiers=verifiers)
        self.clock = Clock()
        self.step = 0
        self.config = SimpleNamespace(
            run=SimpleNamespace(steps=STEPS), learning=SimpleNamespace(stream=False)
        )
        self.live = SimpleNamespace(checked=lambda verdicts: None)
        self.problems = SimpleNamespace(draw=self.draw)
        self.given = []
        """(step, last finished step when it was given)."""

    def steps(self):
        return range(self.step + 1, STEPS + 1)

    def generate(self, work):
        with nullcontext():
            return work()

    def draw(self, step):
        self.given.append((step, self.step))
        numbers = range(step * PROMPTS, (step + 1) * PROMPTS)
        return [Group(Problem.from_text(str(n), "p", "1"), GroupRequest([1], 2, n)) for n in numbers]


@pytest.fixture
def session():
    def pool(name, cls, size):
        options = ray.remote(cls).options(num_cpus=0, max_concurrency=8)
        return Pool(name, lambda index: options.remote(), size, 8)

    rollouts, verifiers = pool("rollout", VersionedEngine, 2), pool("verification", Approves, 1)
    rollouts.wait_ready(60)
    rollouts.broadcast("load_weights", 0)
    yield FakeSession(rollouts, verifiers)
    rollouts.stop()
    verifiers.stop()


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_every_step_has_its_own_problems_and_weights_of_bounded_age(session, ahead):
    ages = []
    for step, batch in batches(session, ahead):
        assert [group.problem.id for group in batch.groups] == [
            str(n) for n in range(step * PROMPTS, (step + 1) * PROMPTS)
        ], "also where a short group of a later step has ended before"
        ages += (step - 1 - batch.versions).tolist()
        session.pools.rollouts.broadcast("load_weights", step)
        session.step = step
        assert session.clock.seconds["wait"] >= 0
        assert session.clock.seconds["rollout"] >= 0
        session.clock.stop("step")
    assert session.step == STEPS
    assert min(ages) == 0
    assert max(ages) == ahead
    assert session.given == [(step, max(0, step - 1 - ahead)) for step in range(1, STEPS + 1)]
    assert not session.pools.rollouts.outstanding


def test_batches_of_a_resumed_run_begin_with_the_next_step(session):
    session.step = 3
    assert [step for step, _ in _learned(session, ahead=2)] == [4, 5]
    assert [step for step, _ in session.given] == [4, 5]


def _learned(session, ahead):
    for step, batch in batches(session, ahead):
        yield step, batch
        session.step = step
