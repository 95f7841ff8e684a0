import math

import pytest
import torch

from orchestrator.algorithm.policy import kl_terms, policy_loss_terms


def surrogate(ratio, advantage, clip_low=0.2, clip_high=0.2, dual_clip=3.0):
    """Loss, gradient in the log-prob, and whether clipped, of one token with the given ratio."""
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    terms = policy_loss_terms(
        logprob, torch.zeros_like(logprob), torch.tensor([advantage]).double(), clip_low, clip_high, dual_clip
    )
    terms.loss.sum().backward()
    return terms.loss.item(), logprob.grad.item(), terms.clipped.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.1, 2.0, -2.2, False),
        (1.5, 2.0, -2.4, True),  # clipped to 1.2
        (0.5, 2.0, -1.0, False),  # moving back towards the old policy is never clipped
        (0.9, -2.0, 1.8, False),
        (0.5, -2.0, 1.6, True),  # clipped to 0.8
        (1.5, -2.0, 3.0, False),
        (2.9, -2.0, 5.8, False),
        (5.0, -2.0, 6.0, True),  # dual clip: 3 * 2
        (5.0, 0.0, 0.0, False),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, clipped):
    measured, gradient, was_clipped = surrogate(ratio, advantage)
    assert measured == pytest.approx(loss)
    assert was_clipped == clipped
    # d(-A ratio) / d logprob = -A ratio, unless a clip replaced it.
    assert gradient == pytest.approx(0.0 if clipped else -advantage * ratio)


def test_the_two_sides_of_the_clip_are_set_apart():
    assert surrogate(1.25, 1.0, clip_low=0.2, clip_high=0.28) == (
        pytest.approx(-1.25),
        pytest.approx(-1.25),
        False,
    )
    assert surrogate(0.75, -1.0, clip_low=0.2, clip_high=0.28)[2]


def test_on_policy_gradient_is_the_advantage():
    """At ratio 1 the clip is a tie between two equal branches; the gradient must be the whole -A."""
    for advantage in (1.5, -1.5):
        assert surrogate(1.0, advantage) == (-advantage, -advantage, False)


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0])
def test_exploded_ratio_gives_finite_loss_and_gradient(log_ratio, advantage):
    logprobs = torch.tensor([log_ratio], requires_grad=True)
    loss = policy_loss_terms(logprobs, torch.zeros(1), torch.tensor([advantage]), 0.2, 0.2).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logprobs.grad.isfinite().all()


def test_dual_clip_must_exceed_one():
    with pytest.raises(ValueError, match="dual_clip is 1"):
        policy_loss_terms(torch.zeros(1), torch.zeros(1), torch.zeros(1), 0.2, 0.2, dual_clip=1.0)


def test_kl_estimators_by_hand():
    logprobs, ref_logprobs = torch.tensor([-1.0, -2.0]).double(), torch.tensor([-2.0, -1.0]).double()
    assert kl_terms(logprobs, ref_logprobs, "k1").tolist() == [1.0, -1.0]
    assert kl_terms(logprobs, ref_logprobs, "k2").tolist() == [0.5, 0.5]
    assert kl_terms(logprobs, ref_logprobs, "k3").tolist() == pytest.approx([math.exp(-1), math.e - 2])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_average_to_the_kl(estimator):
    pi, ref = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    expected = (pi * (pi / ref).log()).sum()
    torch.testing.assert_close((pi * kl_terms(pi.log(), ref.log(), estimator)).sum(), expected)


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_expected_gradient_of_k2_is_that_of_the_kl_and_of_k1_is_nothing(estimator):
    logits, ref = (
        torch.tensor([0.3, -0.2, 0.8], dtype=torch.float64, requires_grad=True),
        torch.tensor([0.2, 0.5, 0.3]).double(),
    )
    logprobs = logits.log_softmax(0)
    (gradient,) = torch.autograd.grad(
        (logprobs.exp().detach() * kl_terms(logprobs, ref.log(), estimator)).sum(), logits, retain_graph=True
    )
    (of_the_kl,) = torch.autograd.grad((logprobs.exp() * (logprobs - ref.log())).sum(), logits)
    torch.testing.assert_close(gradient, of_the_kl if estimator == "k2" else torch.zeros(3).double())


def test_unknown_kl_estimator_is_refused():
    with pytest.raises(ValueError, match="'k4'; choose k1, k2 or k3"):
        kl_terms(torch.zeros(1), torch.zeros(1), "k4")
