"""A rank's part of a batch, and its sums over a step."""

import numpy as np
import torch

from orchestrator.messages.batches import MiniBatch, StepSums, TrainBatch


def test_a_rank_fetches_each_group_that_any_of_its_micro_batches_touches_once():
    values = np.zeros(12, np.float32)
    plan_of_first = [[[0, 1], [4]], [[5], []]]  # by rank and micro-batch
    plan_of_second = [[[8]], [[9, 2]]]
    batch = TrainBatch(
        step=1,
        groups=["a", "b", "c", "d"],
        samples_per_group=3,
        advantages=values,
        rewards=values,
        class_weights=values,
        c_ref=values,
        mini_batches=[MiniBatch(plan_of_first, 1, 1), MiniBatch(plan_of_second, 1, 1)],
        alpha=0.0,
    )
    assert batch.groups_of(0) == [0, 1, 2]
    assert batch.groups_of(1) == [0, 1, 3]


def test_differences_from_the_engine_by_hand():
    sums = StepSums()
    sums.compare(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0]))
    sums.compare(torch.tensor([-3.0]), torch.tensor([-2.75]))
    assert sums.compared_tokens == 3
    assert sums.mismatch_abs == 0.75
    assert sums.mismatch_max == 0.5
    # k3 of KL(engine || learner) is ratio - 1 - log(ratio), with ratio = learner / engine.
    expected = sum(np.exp(gap) - 1 - gap for gap in (0.5, 0.0, -0.25))
    assert np.isclose(sums.mismatch_kl, expected)


def test_the_score_of_an_unfinished_sample_is_not_compared():
    sums = StepSums()
    sums.compare_scores(torch.tensor([-20.0, -3.0]), torch.tensor([-20.5, float("nan")]))
    sums.compare_scores(torch.tensor([-7.0]), torch.tensor([-7.25]))
    assert sums.z_mismatch_max == 0.5
