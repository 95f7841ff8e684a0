"""Groups go through real pools of small workers; and the layout of a batch."""

import sys
from itertools import count

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectLostError

from orchestrator.messages.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.trajectories import Generated, pack
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import CheckedGroup, Group, collect, to_batch
from orchestrator.pools.pool import Pool

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

CORRECT, WRONG, NO_ANSWER, TIMEOUT = Status.CORRECT, Status.WRONG, Status.NO_ANSWER, Status.TIMEOUT


def group(name, *samples):
    """`samples`: status, whether finished, and response tokens of each."""
    generated = [
        Generated(
            [7] * tokens, [-1.0] * tokens, finished, -5.0 if finished else np.nan, [2] * (tokens - 1) + [3]
        )
        for _, finished, tokens in samples
    ]
    summary = pack([1, 1], generated).summary()
    verdicts = [Verdict(status) for status, _, _ in samples]
    return CheckedGroup(Problem.from_text(name, "p", "1"), "trajectories", "texts", summary, verdicts)


def test_a_batch_lays_out_samples_group_after_group():
    batch = to_batch(
        [
            group("a", (CORRECT, True, 10), (WRONG, True, 20), (NO_ANSWER, False, 40)),
            group("b", (TIMEOUT, True, 30), (CORRECT, True, 5)),
        ]
    )
    assert batch.group.tolist() == [0, 0, 0, 1, 1]
    assert batch.rewards.tolist() == [1, 0, 0, 0, 1]
    assert batch.verified.tolist() == [True, True, True, False, True]
    assert batch.finished.tolist() == [True, True, False, True, True]
    assert batch.scored.tolist() == [True, True, False, False, True]
    assert batch.lengths.tolist() == [10, 20, 40, 30, 5]
    assert batch.total_lengths.tolist() == [12, 22, 42, 32, 7]
    assert batch.versions.tolist() == [2] * 5
    assert batch.count(TIMEOUT) == 1
    assert batch.accuracy == 2 / 4
    assert {array.dtype for array in (batch.group, batch.lengths, batch.total_lengths)} == {
        np.dtype(np.int32)
    }


@pytest.mark.parametrize("verdicts", [[], [Verdict(CORRECT)] * 3])
def test_a_group_needs_one_verdict_for_each_sample(verdicts):
    """Else its values would shift those of the groups that follow."""
    summary = group("b", (CORRECT, True, 1), (WRONG, True, 1)).summary
    problem = Problem.from_text("b", "p", "1")
    with pytest.raises(ValueError, match=f"problem b: 2 generated samples, but {len(verdicts)} verdicts"):
        CheckedGroup(problem, "trajectories", "texts", summary, verdicts)


class Echo:
    """Engine and verifier in one: a response is its seed as text, correct when it equals the reference."""

    def __init__(self):
        self.calls = count()

    def ping(self):
        return True

    def generate(self, request):
        seeds = range(request.seed, request.seed + request.num_samples)
        samples = [Generated([seed], [-1.0], True, -float(seed), [0]) for seed in seeds]
        packed = pack(request.prompt_ids, samples)
        return packed, [str(seed) for seed in seeds], packed.summary()

    def verify(self, texts, finished, problem):
        assert finished == [True] * len(texts)
        return [Verdict(CORRECT if text == problem.reference else WRONG, text) for text in texts]


class LosesOnce(Echo):
    """As if the node with the texts of the first group had died."""

    def verify(self, texts, finished, problem):
        if next(self.calls) == 0:
            raise ObjectLostError("ff" * 28, "", "")
        return super().verify(texts, finished, problem)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("verifier", [Echo, LosesOnce])
def test_groups_come_back_complete_and_in_order(verifier):
    groups = [
        Group(
            Problem.from_text(f"p{number}", "text", str(10 * number)),
            GroupRequest([1, 2], 2, 10 * number),
        )
        for number in range(3)
    ]

    def pool(name, cls, size):
        actor = ray.remote(cls).options(num_cpus=0)
        return Pool(name, lambda index: actor.remote(), size, 2)

    rollouts, verifiers = pool("rollout", Echo, 2), pool("verification", verifier, 1)
    try:
        batch = collect(rollouts, verifiers, groups)
        assert [group.problem.id for group in batch.groups] == ["p0", "p1", "p2"]
        assert batch.rewards.tolist() == [1, 0, 1, 0, 1, 0]
        assert batch.z_logprobs.tolist() == [0, -1, -10, -11, -20, -21]
        assert ray.get([group.texts for group in batch.groups]) == [["0", "1"], ["10", "11"], ["20", "21"]]
        assert [len(group) for group in ray.get([group.trajectories for group in batch.groups])] == [2, 2, 2]
        assert verifiers.restarts == rollouts.restarts == 0
    finally:
        rollouts.stop()
        verifiers.stop()
