import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.algorithm.advantages import group_advantages, mix_self_rewards

ROOT_HALF = math.sqrt(0.5)


def mix(scores, finished, group, advantages=None, tau=0.1, filter_std=0.1):
    advantages = torch.zeros(len(scores)) if advantages is None else torch.tensor(advantages)
    return mix_self_rewards(
        advantages, torch.tensor(scores), torch.tensor(finished), torch.tensor(group), tau, filter_std
    )


def test_group_advantages_by_hand():
    # Problem 7: rewards 1, 0, 0, 1, mean 1/2, unbiased variance 4 * (1/4) / 3. Problem 2: rewards 1, 0,
    # variance 1/2.
    advantages = group_advantages(
        torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]), torch.tensor([7, 7, 2, 7, 2, 7])
    )
    seven, two = 0.5 / (math.sqrt(1 / 3) + 1e-6), 0.5 / (ROOT_HALF + 1e-6)
    torch.testing.assert_close(advantages, torch.tensor([seven, -seven, two, -seven, -two, seven]))


def test_group_of_one_sample_gets_no_advantage():
    assert group_advantages(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4, 5, 5]))[0] == 0


def test_equal_rewards_that_are_no_binary_fraction_give_no_advantage():
    advantages = group_advantages(torch.full((7,), 0.1), torch.zeros(7, dtype=torch.long))
    assert advantages.abs().max() < 1e-9


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_advantages_do_not_depend_on_the_order_of_samples_and_sum_to_zero_in_a_group(samples, random):
    group, rewards = (torch.tensor(column) for column in zip(*samples, strict=True))
    advantages = group_advantages(rewards.float(), group)
    for problem in group.unique():
        assert advantages[group == problem].sum().abs() < 1e-5
    order = torch.tensor(random.sample(range(len(samples)), len(samples)))
    torch.testing.assert_close(group_advantages(rewards[order].float(), group[order]), advantages[order])


def test_mix_by_hand():
    # Finished scores 0.9 and 0.1: mean 0.5, std sqrt(0.32), so A_s is +-sqrt(1/2).
    mixed = mix([0.9, 0.1], [True, True], [0, 0], advantages=[1.0, -1.0], tau=0.1)
    torch.testing.assert_close(mixed, torch.tensor([0.9 + 0.1 * ROOT_HALF, -0.9 - 0.1 * ROOT_HALF]))


def test_mix_clips_scores_to_the_unit_interval():
    assert torch.equal(mix([3.0, -0.4, 0.7], [True] * 3, [0] * 3), mix([1.0, 0.0, 0.7], [True] * 3, [0] * 3))


def test_reference_fault_2_truncated_sample_gets_no_self_advantage():
    """It neither receives a self-advantage nor enters its group's mean and std."""
    advantages = [1.0, -1.0, -0.5]
    for unread in (0.0, 0.95, math.nan):
        mixed = mix([0.9, 0.1, unread], [True, True, False], [0, 0, 0], advantages)
        assert mixed[2] == -0.5
        assert torch.equal(mixed[:2], mix([0.9, 0.1], [True, True], [0, 0], advantages[:2]))


def test_group_with_fewer_than_two_finished_samples_keeps_verifier_advantages():
    advantages = [0.7, -0.3, 0.1, -0.2]
    mixed = mix(
        [0.9, math.nan, math.nan, math.nan],
        [True, False, False, False],
        [0, 0, 1, 1],
        advantages,
        filter_std=0.0,
    )
    assert torch.equal(mixed, torch.tensor(advantages))


def test_filter_keeps_verifier_advantages_up_to_and_including_its_threshold():
    scores = [0.25, 0.75]  # std sqrt(1/8)
    std = math.sqrt(0.125)
    assert mix(scores, [True, True], [0, 0], filter_std=std).tolist() == [0, 0]
    assert mix(scores, [True, True], [0, 0], filter_std=std - 1e-9)[1] > 0


def test_groups_are_filtered_one_by_one():
    mixed = mix([0.9, 0.1, 0.52, 0.48], [True] * 4, [0, 0, 1, 1])
    assert (mixed != 0).tolist() == [True, True, False, False]


def test_no_gradient_flows_through_the_scores():
    scores = torch.tensor([0.9, 0.1], requires_grad=True)
    mixed = mix_self_rewards(
        torch.zeros(2), scores, torch.tensor([True, True]), torch.tensor([0, 0]), 0.1, 0.1
    )
    assert not mixed.requires_grad


def test_finished_sample_without_a_score_is_refused():
    with pytest.raises(ValueError, match=r"samples \[1\] finished but have no score"):
        mix([0.5, math.nan], [True, True], [0, 0])


def test_negative_filter_is_refused():
    with pytest.raises(ValueError, match=r"filter_std is -0\.1"):
        mix([0.5, 0.6], [True, True], [0, 0], filter_std=-0.1)


def test_graded_rewards_are_normalised_in_their_group():
    # Rewards 0.25, 1, 0, 0.25: mean 0.375, unbiased variance 0.5625 / 3.
    rewards = torch.tensor([0.25, 1.0, 0.0, 0.25], dtype=torch.float64)
    found = group_advantages(rewards, torch.zeros(4, dtype=torch.long))
    expected = torch.tensor([-0.125, 0.625, -0.375, -0.125], dtype=torch.float64) / 0.1875**0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
