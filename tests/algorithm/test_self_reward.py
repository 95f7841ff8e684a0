import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.algorithm.loss import LossInputs, LossSettings, laser_loss
from orchestrator.algorithm.self_reward import (
    calibrate_c_ref,
    class_weights,
    self_reward_loss_terms,
    self_reward_score,
)


def test_targets_of_the_published_runs():
    """At c_ref -23 and beta_v 0.1: right at log-prob -13, wrong at -23, the decision between them at -18."""
    score = self_reward_score(torch.tensor([-13.0, -23.0, -18.0]), -23.0, 0.1)
    torch.testing.assert_close(score, torch.tensor([1.0, 0.0, 0.5]))


def test_c_ref_may_differ_by_sample():
    score = self_reward_score(torch.tensor([-13.0, -13.0]), torch.tensor([-23.0, -33.0]), 0.1)
    torch.testing.assert_close(score, torch.tensor([1.0, 2.0]))


def test_score_recovers_the_reward_from_the_closed_form_of_the_optimal_policy():
    """pi* = pi_ref exp(r / beta_v) / Z on two tokens: the score is r - beta_v log Z.

    For a rare token log Z is nearly 0.
    """
    beta_v, c_ref = 0.1, -23.0
    tilted = math.exp(c_ref + 1 / beta_v)
    normaliser = tilted + 1 - math.exp(c_ref)
    score = self_reward_score(
        torch.tensor([math.log(tilted / normaliser)], dtype=torch.float64), c_ref, beta_v
    ).item()
    assert math.log(normaliser) == pytest.approx(2.26e-6, rel=1e-2)
    assert score == pytest.approx(1 - beta_v * math.log(normaliser), abs=1e-12)


def test_class_weights_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    finished = torch.tensor([True, True, True, True, False, False])
    # N = 4 finished: 4 / (2 * 1) for the correct one, 4 / (2 * 3) for each wrong one.
    torch.testing.assert_close(class_weights(rewards, finished), torch.tensor([2, 2 / 3, 2 / 3, 2 / 3, 0, 0]))


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_class_alone_weighs_one_half(reward):
    weights = class_weights(torch.full((3,), reward), torch.tensor([True, True, False]))
    assert weights.tolist() == [0.5, 0.5, 0.0]


def test_nothing_finished_weighs_nothing():
    assert class_weights(torch.tensor([1.0, 0.0]), torch.tensor([False, False])).tolist() == [0, 0]


def test_a_graded_reward_is_the_scores_target():
    """0.25 at beta_v 0.1 and c_ref -23: the target is log-prob -20.5, and the closed form holds there too."""
    beta_v, c_ref, reward = 0.1, -23.0, 0.25
    tilted = math.exp(c_ref + reward / beta_v)
    normaliser = tilted + 1 - math.exp(c_ref)
    z_logprob = torch.tensor([math.log(tilted / normaliser)], dtype=torch.float64, requires_grad=True)
    score = self_reward_score(z_logprob, c_ref, beta_v)
    assert z_logprob.item() == pytest.approx(-20.5, abs=1e-8)
    assert score.item() == pytest.approx(reward - beta_v * math.log(normaliser), abs=1e-12)
    (loss,) = self_reward_loss_terms(score, torch.tensor([reward]).double(), torch.ones(1).double())
    assert loss.item() < 1e-18


def test_graded_loss_and_gradients_by_hand():
    """Rewards 0.25 (the right form), 1 and 0: two wrong solutions of weight 3 / 4, a correct one of 3 / 2.

    Scores 0, 0.5 and -0.1. Terms 0.75 * 0.25^2, 1.5 * 0.5^2 and 0.75 * 0.1^2; each gradient is
    2 * w * (score - r) * beta_v / N.
    """
    rewards = torch.tensor([0.25, 1.0, 0.0], dtype=torch.float64)
    weights = class_weights((rewards > 0.5).double(), torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.tensor([0.75, 1.5, 0.75], dtype=torch.float64))
    z_logprobs = torch.tensor([-20.0, -15.0, -21.0], dtype=torch.float64, requires_grad=True)
    inputs = LossInputs(
        logprobs=torch.zeros(3, dtype=torch.float64, requires_grad=True),
        advantages=torch.zeros(3, dtype=torch.float64),
        total_tokens=3,
        total_finished=3,
        z_logprobs=z_logprobs,
        c_ref=-20.0,
        rewards=rewards,
        weights=weights,
    )
    settings = LossSettings(
        alpha=0.1, beta_v=0.1, kl_coef=0.0, kl_estimator="k3", clip_low=0.2, clip_high=0.2
    )
    found = laser_loss(inputs, settings)
    assert found.self_reward.item() == pytest.approx((0.046875 + 0.375 + 0.0075) / 3, abs=1e-12)
    (gradient,) = torch.autograd.grad(found.total, z_logprobs)
    expected = torch.tensor([-0.00125, -0.005, -0.0005], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_both_classes_carry_the_same_total_weight(samples):
    correct, finished = (torch.tensor(column) for column in zip(*samples, strict=True))
    weights = class_weights(correct.float(), finished)
    if (correct & finished).any() and (~correct & finished).any():
        torch.testing.assert_close(weights[correct].sum(), finished.sum() / 2)
        torch.testing.assert_close(weights[~correct].sum(), finished.sum() / 2)
    assert (weights[~finished] == 0).all()


def test_loss_terms_by_hand():
    terms = self_reward_loss_terms(
        torch.tensor([0.4, 0.4, 1.5]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([2.0, 0.5, 2.0])
    )
    torch.testing.assert_close(terms, torch.tensor([2 * 0.36, 0.5 * 0.16, 2 * 0.25]))


@pytest.mark.parametrize("unread", [math.nan, -math.inf, 1e30])
def test_unfinished_sample_leaves_neither_loss_nor_gradient(unread):
    z_logprobs = torch.tensor([-15.0, unread], requires_grad=True)
    terms = self_reward_loss_terms(
        self_reward_score(z_logprobs, -23.0, 0.1), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    )
    terms.sum().backward()
    assert terms[1] == 0
    # d/dz (0.1 (z + 23) - 1)^2 at z = -15: 2 * 0.1 * (0.8 - 1)
    torch.testing.assert_close(z_logprobs.grad, torch.tensor([-0.04, 0.0]))


def test_loss_is_least_at_the_targets():
    """Gradient descent on the log-probs ends at c_ref + r / beta_v: -13 for right, -23 for wrong."""
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    z_logprobs = torch.tensor([-20.0, -20.0], dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        loss = self_reward_loss_terms(
            self_reward_score(z_logprobs, -23.0, 0.1), rewards, torch.ones(2, dtype=torch.float64)
        ).sum()
        (gradient,) = torch.autograd.grad(loss, z_logprobs)
        z_logprobs = (z_logprobs - 10 * gradient).detach().requires_grad_()
    torch.testing.assert_close(z_logprobs.detach(), torch.tensor([-13.0, -23.0], dtype=torch.float64))


@given(st.integers(1, 50), st.integers(1, 50))
def test_a_score_blind_to_the_solution_is_best_at_one_half_whatever_the_accuracy(right, wrong):
    rewards = torch.cat([torch.ones(right), torch.zeros(wrong)]).double()
    weights = class_weights(rewards, torch.ones(right + wrong, dtype=torch.bool))
    score = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    self_reward_loss_terms(score.expand(right + wrong), rewards, weights).sum().backward()
    assert abs(score.grad) < 1e-10


@pytest.mark.parametrize(
    ("c_ref", "beta_v", "level"),
    [
        (-23.0, 0.1, "ok"),  # exp(-13)
        (-25.0, 0.1, "ok"),
        (-13.01, 0.1, "ok"),  # exp(-3.01) = 0.0493
        (-12.99, 0.1, "warn"),  # exp(-2.99) = 0.0503
        (-10.01, 0.1, "warn"),
        (-10.0, 0.1, "refuse"),  # exp(0)
        (-2.0, 0.1, "refuse"),
        (0.0, 0.1, "refuse"),
        (-23.0, 0.001, "refuse"),  # exp(977) is no float
        (-math.inf, 0.1, "refuse"),
        (math.nan, 0.1, "refuse"),
    ],
)
def test_assumption_on_c_ref(c_ref, beta_v, level):
    check = check_c_ref(c_ref, beta_v)
    assert check.level == level
    assert bool(check.messages) == (level != "ok")


def test_low_upper_limit_of_the_score_has_its_own_warning():
    # exp(-120 + 100) is tiny, but the score cannot exceed 1.2.
    check = check_c_ref(-120.0, 0.01)
    assert check.level == "warn"
    assert len(check.messages) == 1
    assert "cannot exceed beta_v * |c_ref| = 1.2" in check.messages[0]
    # exp(-3.5 + 1) is 0.08, while the score can reach 3.5.
    (message,) = check_c_ref(-3.5, 1.0).messages
    assert "above 0.05" in message


def test_reference_fault_7_a_wrong_token_or_c_ref_is_refused_with_the_keys_to_change():
    """The reference takes a token id and a c_ref from the user; with a common one the score is no reward."""
    (message,) = check_c_ref(-4.0, 0.1).messages
    assert "self_reward.token" in message
    assert "loss.beta_v" in message


@pytest.mark.parametrize("beta_v", [0.0, -0.1, math.nan])
def test_beta_v_must_be_positive(beta_v):
    with pytest.raises(ValueError, match=r"loss\.beta_v"):
        check_c_ref(-23.0, beta_v)


def test_calibration_takes_finished_solutions_only():
    calibration = calibrate_c_ref(torch.tensor([-23.0, math.nan, -24.0, -25.0, math.nan]))
    assert (calibration.c_ref, calibration.std, calibration.n) == (-24.0, 1.0, 3)


def test_calibration_on_too_few_finished_solutions_says_what_to_do():
    with pytest.raises(ValueError, match=r"1 of 3 solutions finished.*rollout\.max_response_tokens"):
        calibrate_c_ref(torch.tensor([-23.0, math.nan, math.nan]))
