"""The metrics of a training step, by hand-worked values."""

import math

import numpy as np
import pytest
import torch

from orchestrator.messages.batches import StepSums
from orchestrator.messages.problems import Problem
from orchestrator.messages.trajectories import GroupSummary
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import CheckedGroup, to_batch
from orchestrator.training.step_metrics import part_means, step_metrics


@pytest.fixture
def batch():
    """One problem with a right and a wrong solution of 30 and 10 tokens."""
    summary = GroupSummary(
        prompt_tokens=2,
        lengths=np.array([30, 10], np.int32),
        finished=np.array([True, True]),
        z_logprobs=np.full(2, -20.0, np.float32),
        versions=np.array([[0, 2], [1, 1]], np.int32),
    )
    verdicts = [Verdict(Status.CORRECT, "1"), Verdict(Status.WRONG, "2")]
    problem = Problem.from_text("a", "p", "1")
    return to_batch([CheckedGroup(problem, "trajectories", "texts", summary, verdicts)])


def metrics_of(batch, sums, step_s=8.0):
    seconds = {"wait": 2.5, "rollout": 2.0, "verify": 0.5, "sync": 0.25, "step": step_s}
    return step_metrics(3, batch, None, sums, seconds)


def test_throughput_counts_the_whole_step(batch):
    metrics = metrics_of(batch, [StepSums(tokens=40, compared_tokens=40, seconds=1.0)])
    assert metrics["throughput/samples_per_s"] == 2 / 8
    assert metrics["throughput/tokens_per_s"] == 40 / 8
    assert metrics["throughput/rollout_tokens_per_s"] == 40 / 2
    assert metrics["throughput/learning_tokens_per_s"] == 40 / 1
    assert (metrics["time/step"], metrics["time/learn"]) == (8, 1)


def test_staleness_counts_from_the_weights_that_the_step_learns_from(batch):
    """Step 3 updates version 2; the oldest tokens of the two samples are of version 0 and 1."""
    metrics = metrics_of(batch, [StepSums(tokens=40, compared_tokens=40, seconds=1.0)])
    assert (metrics["rollout/staleness"], metrics["rollout/staleness_max"]) == (1.5, 2)


def test_importance_weights_have_shares_a_mean_and_an_effective_share(batch):
    """Of 40 tokens 20 weigh 1, 10 weigh 2 and were cut, and 10 are masked."""
    ranks = [
        StepSums(tokens=20, importance=20.0, importance_squares=20.0, seconds=1.0),
        StepSums(tokens=20, importance=20.0, importance_squares=40.0, seconds=1.0),
    ]
    ranks[1].truncated_tokens = ranks[1].masked_tokens = 10
    metrics = metrics_of(batch, ranks)
    assert metrics["policy/importance_truncated"] == 0.25
    assert metrics["policy/importance_masked"] == 0.25
    assert metrics["policy/importance_mean"] == 1.0
    assert metrics["policy/importance_ess"] == pytest.approx(40**2 / 60 / 40)
    assert metrics_of(batch, [StepSums(tokens=5, seconds=1.0)])["policy/importance_ess"] == 0


def test_the_engine_learner_kl_is_a_mean_over_the_compared_tokens(batch):
    ranks = [
        StepSums(tokens=30, compared_tokens=10, mismatch_kl=0.4),
        StepSums(tokens=10, compared_tokens=6, mismatch_kl=0.8),
    ]
    for rank in ranks:
        rank.seconds = 1.0
    assert metrics_of(batch, ranks)["policy/mismatch_kl"] == pytest.approx(1.2 / 16)


def test_a_step_that_learns_from_no_token_has_no_means_over_tokens(batch):
    metrics = metrics_of(batch, [StepSums(seconds=1.0)])
    for name in ("policy/entropy", "policy/clip_share", "policy/mismatch_kl", "policy/mismatch_mean"):
        assert math.isnan(metrics[name])
    assert metrics["throughput/tokens_per_s"] == 40 / 8


def test_engine_and_learner_are_compared_token_by_token():
    sums = StepSums()
    sums.compare(torch.tensor([-1.0]), torch.tensor([-1.0 - math.log(1.5)]))
    sums.compare(torch.tensor([-2.0]), torch.tensor([-2.0 - math.log(4.0)]))
    assert sums.compared_tokens == 2
    assert sums.mismatch_max == pytest.approx(math.log(4.0))
    assert sums.mismatch_abs == pytest.approx(math.log(6.0))
    # k3 of KL(engine || learner): r - 1 - log r with r = pi_learner / pi_engine = 1.5 and 4.
    assert sums.mismatch_kl == pytest.approx(0.5 - math.log(1.5) + 3 - math.log(4.0))


def test_the_parts_of_rewards_are_averaged_over_the_samples_that_have_them():
    verdicts = [
        Verdict(Status.WRONG, parts={"form": 1.0, "fields": 0.5}),
        Verdict(Status.WRONG, parts={"form": 0.0}),
        Verdict(Status.ERROR),
    ]
    assert part_means(verdicts) == {"reward/fields": 0.5, "reward/form": 0.5}
    assert part_means([]) == {}
