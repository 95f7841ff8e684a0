"""The loss of whole batches: closed forms, the same result for any split, and terms that are switched off."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.algorithm.importance import ImportanceSettings
from orchestrator.algorithm.loss import LossInputs, LossSettings, laser_loss
from orchestrator.algorithm.micro_batches import plan_micro_batches
from orchestrator.algorithm.self_reward import class_weights
from orchestrator.algorithm.token_logprobs import token_logprobs

GRPO = LossSettings(alpha=0.0, beta_v=0.1, kl_coef=0.0, kl_estimator="k3", clip_low=0.2, clip_high=0.2)
ALL_TERMS = replace(GRPO, alpha=0.1, kl_coef=0.05, importance=ImportanceSettings(cap=1.1))
HIDDEN, VOCAB, Z_C = 4, 9, 8


@dataclass
class Batch:
    """Random solutions of a one-layer linear model: `hidden` at each response token, `end` at each EOS."""

    lengths: list[int]
    hidden: torch.Tensor
    targets: torch.Tensor
    end: torch.Tensor
    old: torch.Tensor
    behaviour: torch.Tensor
    reference: torch.Tensor
    advantages: torch.Tensor
    rewards: torch.Tensor
    finished: torch.Tensor
    c_ref: torch.Tensor
    weight: torch.Tensor


def make_batch(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens, samples = sum(lengths), len(lengths)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch = Batch(
        lengths=list(lengths),
        hidden=normal(tokens, HIDDEN),
        targets=torch.randint(VOCAB - 1, (tokens,), generator=generator),
        end=normal(samples, HIDDEN),
        old=torch.empty(0),
        behaviour=torch.empty(0),
        reference=torch.empty(0),
        advantages=normal(samples).repeat_interleave(torch.tensor(lengths)),
        rewards=(torch.rand(samples, generator=generator) > 0.6).double(),
        finished=torch.rand(samples, generator=generator) > 0.25,
        c_ref=-20 + normal(samples),
        weight=normal(VOCAB, HIDDEN).requires_grad_(),
    )
    with torch.no_grad():
        current = token_logprobs(batch.hidden, batch.weight, None, batch.targets)[0]
    batch.old, batch.behaviour, batch.reference = (current + 0.3 * normal(tokens) for _ in range(3))
    return batch


def loss_of(batch, samples, loss_settings, *, on_policy=False, with_z=True):
    """The loss of a micro-batch that holds these samples."""
    ends = torch.tensor(batch.lengths).cumsum(0).tolist()
    tokens = torch.tensor(
        [token for s in samples for token in range(ends[s] - batch.lengths[s], ends[s])], dtype=torch.long
    )
    samples = torch.tensor(samples, dtype=torch.long)
    logprobs, _ = token_logprobs(batch.hidden[tokens], batch.weight, None, batch.targets[tokens])
    z_logprobs, _ = token_logprobs(batch.end[samples], batch.weight, None, torch.full((len(samples),), Z_C))
    inputs = LossInputs(
        logprobs=logprobs,
        advantages=batch.advantages[tokens],
        total_tokens=sum(batch.lengths),
        total_finished=int(batch.finished.sum()),
        old_logprobs=None if on_policy else batch.old[tokens],
        behaviour_logprobs=batch.behaviour[tokens],
        sample=torch.arange(len(samples)).repeat_interleave(torch.tensor(batch.lengths)[samples]),
        ref_logprobs=batch.reference[tokens],
    )
    if with_z:
        weights = class_weights(batch.rewards, batch.finished)[samples]
        z_logprobs = torch.where(batch.finished[samples], z_logprobs, torch.nan)
        inputs = replace(
            inputs,
            z_logprobs=z_logprobs,
            c_ref=batch.c_ref[samples],
            rewards=batch.rewards[samples],
            weights=weights,
        )
    return laser_loss(inputs, loss_settings)


def gradient(outputs, batch):
    return torch.autograd.grad(outputs.total, batch.weight)[0]


def micro_batch(**changes):
    """Two tokens and two samples with numbers fit for working by hand."""
    inputs = LossInputs(
        logprobs=torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True),
        advantages=torch.tensor([1.0, -0.5], dtype=torch.float64),
        total_tokens=4,
        total_finished=2,
        z_logprobs=torch.tensor([-15.0, -20.0], dtype=torch.float64, requires_grad=True),
        c_ref=-23.0,
        rewards=torch.tensor([1.0, 0.0], dtype=torch.float64),
        weights=torch.tensor([1.0, 1.0], dtype=torch.float64),
    )
    return replace(inputs, **changes)


def test_all_terms_by_hand():
    inputs = micro_batch(
        old_logprobs=torch.tensor([-1.0 - math.log(1.5), -2.0]).double(),
        behaviour_logprobs=torch.tensor([-1.0 - math.log(1.5), -2.0 - math.log(4.0)]).double(),
        ref_logprobs=torch.tensor([-1.0, -2.0 - math.log(2.0)]).double(),
    )
    importance = ImportanceSettings(cap=2.0)
    outputs = laser_loss(
        inputs, replace(GRPO, alpha=0.1, kl_coef=0.5, kl_estimator="k1", importance=importance)
    )
    # Ratio 1.5 is clipped to 1.2 (weight 1); the second token's weight pi_old / pi_behaviour = 4 is cut to 2.
    policy = (-1.2 + 2 * 0.5) / 4
    kl = math.log(2.0) / 4
    # Scores 0.8 and 0.3.
    self_reward = (0.2**2 + 0.3**2) / 2
    assert outputs.policy.item() == pytest.approx(policy)
    assert outputs.kl.item() == pytest.approx(kl)
    assert outputs.self_reward.item() == pytest.approx(self_reward)
    assert outputs.total.item() == pytest.approx(policy + 0.5 * kl + 0.1 * self_reward)
    assert outputs.clipped_tokens.item() == 1
    assert outputs.scores.tolist() == pytest.approx([0.8, 0.3])


def test_gradients_by_hand_on_policy():
    inputs = micro_batch()
    laser_loss(inputs, replace(GRPO, alpha=0.1)).total.backward()
    torch.testing.assert_close(inputs.logprobs.grad, -inputs.advantages / 4)
    # alpha * 2 * beta_v * (score - r) / N
    torch.testing.assert_close(
        inputs.z_logprobs.grad, torch.tensor([0.1 * 0.2 * -0.2 / 2, 0.1 * 0.2 * 0.3 / 2]).double()
    )


def test_only_the_total_can_be_differentiated():
    batch = make_batch([3, 2])
    outputs = loss_of(batch, [0, 1], ALL_TERMS)
    assert outputs.total.requires_grad
    for name in ("policy", "self_reward", "kl", "clipped_tokens", "scores"):
        assert not getattr(outputs, name).requires_grad


def test_absent_old_logprobs_are_the_current_ones():
    batch = make_batch([3, 2, 4])
    with torch.no_grad():
        batch.old = token_logprobs(batch.hidden, batch.weight, None, batch.targets)[0]
    given_, absent = (
        loss_of(batch, [0, 1, 2], ALL_TERMS, on_policy=on_policy) for on_policy in (False, True)
    )
    assert torch.equal(given_.total, absent.total)
    assert torch.equal(gradient(given_, batch), gradient(absent, batch))


@pytest.mark.parametrize(
    "importance",
    [
        ImportanceSettings(cap=1.1),
        ImportanceSettings("sequence", cap=1.5, bounds=(0.2, 4.0)),
        ImportanceSettings("geometric", bounds=(0.9, 1.1)),
    ],
    ids=lambda importance: importance.level,
)
@pytest.mark.parametrize("on_policy", [False, True])
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    num_ranks=st.integers(1, 4),
    budget=st.integers(12, 60),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_loss_and_gradient_do_not_depend_on_micro_batches_and_ranks(
    on_policy, importance, lengths, num_ranks, budget, seed
):
    batch, all_terms = make_batch(lengths, seed), replace(ALL_TERMS, importance=importance)
    whole = loss_of(batch, range(len(lengths)), all_terms, on_policy=on_policy)
    plan = plan_micro_batches(lengths, num_ranks, budget)
    parts = [loss_of(batch, micro, all_terms, on_policy=on_policy) for rank in plan for micro in rank]
    for name in ("total", "policy", "self_reward", "kl", "clipped_tokens"):
        torch.testing.assert_close(
            sum(getattr(part, name) for part in parts), getattr(whole, name), rtol=1e-12, atol=1e-12
        )
    for counts, of_all in zip(
        zip(*(part.importance for part in parts), strict=True), whole.importance, strict=True
    ):
        torch.testing.assert_close(sum(counts), of_all, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        sum(gradient(part, batch) for part in parts), gradient(whole, batch), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("on_policy", [False, True])
def test_alpha_zero_is_plain_grpo_to_the_last_bit(on_policy):
    batch = make_batch([5, 3, 8, 1, 4])
    plain_settings = replace(ALL_TERMS, alpha=0.0)
    without, beside = (
        loss_of(batch, range(5), plain_settings, on_policy=on_policy, with_z=with_z)
        for with_z in (False, True)
    )
    assert torch.equal(without.total, beside.total)
    grpo = gradient(without, batch)
    assert torch.equal(grpo, gradient(beside, batch))
    # The score is measured all the same, and changes the gradient when alpha is above 0.
    assert beside.self_reward > 0
    active = loss_of(batch, range(5), ALL_TERMS, on_policy=on_policy)
    assert not torch.equal(grpo, gradient(active, batch))


def test_alpha_zero_is_plain_grpo_even_where_the_score_is_infinite():
    barred = micro_batch(z_logprobs=torch.tensor([-15.0, -math.inf]).double())
    assert torch.equal(laser_loss(barred, GRPO).total, laser_loss(micro_batch(z_logprobs=None), GRPO).total)


@pytest.mark.parametrize("unread", [math.nan, -13.0])
def test_unfinished_samples_cannot_poison_the_loss(unread):
    inputs = micro_batch(z_logprobs=torch.tensor([-15.0, unread], dtype=torch.float64, requires_grad=True))
    inputs = replace(inputs, weights=torch.tensor([0.5, 0.0]).double(), total_finished=1)
    outputs = laser_loss(inputs, replace(GRPO, alpha=1.0))
    outputs.total.backward()
    assert outputs.self_reward.item() == pytest.approx(0.5 * 0.2**2)
    assert inputs.z_logprobs.grad[1] == 0
    assert outputs.scores[0].item() == pytest.approx(0.8)
    assert outputs.scores[1].isnan()


def test_nothing_finished_leaves_the_policy_loss():
    batch = make_batch([3, 2])
    batch.finished[:] = False
    outputs = loss_of(batch, [0, 1], ALL_TERMS)
    assert outputs.self_reward == 0
    assert torch.equal(
        outputs.total, loss_of(batch, [0, 1], replace(ALL_TERMS, alpha=0.0), with_z=False).total
    )


def test_micro_batch_without_samples_is_zero_and_can_be_differentiated():
    batch = make_batch([3, 2])
    outputs = loss_of(batch, [], ALL_TERMS)
    assert outputs.total == 0
    assert (gradient(outputs, batch) == 0).all()


def test_reference_fault_2_truncated_sample_adds_nothing_to_the_self_reward_loss():
    batch = make_batch([3, 2, 4])
    batch.finished = torch.tensor([True, True, False])
    before = loss_of(batch, range(3), ALL_TERMS)
    batch.end[2] *= -3  # the model's output where the solution was cut off
    after = loss_of(batch, range(3), ALL_TERMS)
    assert torch.equal(before.total, after.total)
    assert torch.equal(gradient(before, batch), gradient(after, batch))


def test_reference_fault_4_no_reference_model_is_asked_for_without_a_kl_coefficient():
    inputs = micro_batch(ref_logprobs=None)
    assert laser_loss(inputs, replace(GRPO, alpha=0.1)).kl == 0
    with pytest.raises(ValueError, match=r"kl_coef is 0\.01, but ref_logprobs are missing"):
        laser_loss(inputs, replace(GRPO, kl_coef=0.01))


def test_kl_without_a_coefficient_is_measured_and_not_trained_on():
    ref_logprobs = torch.tensor([-1.5, -1.0]).double()
    measured, plain = (
        laser_loss(micro_batch(ref_logprobs=reference), GRPO) for reference in (ref_logprobs, None)
    )
    assert measured.kl > 0
    assert torch.equal(measured.total, plain.total)


def test_masked_tokens_leave_the_policy_loss_alone_and_stay_in_the_mean():
    """The first token's ratio is 4, out of bounds. KL and self-reward loss keep both tokens' samples."""
    behaviour = torch.tensor([-1.0 - math.log(4.0), -2.0]).double()
    inputs = micro_batch(behaviour_logprobs=behaviour, ref_logprobs=torch.tensor([-2.0, -2.0]).double())
    masking = replace(GRPO, alpha=0.1, kl_coef=0.5, kl_estimator="k2")
    outputs = laser_loss(inputs, replace(masking, importance=ImportanceSettings(bounds=(0.5, 2.0))))
    plain = laser_loss(inputs, masking)
    assert outputs.policy.item() == pytest.approx(0.5 / 4)
    assert (outputs.kl, outputs.self_reward) == (plain.kl, plain.self_reward)
    assert [float(count) for count in outputs.importance] == [0, 1, 1, 1]
    (gradient_,) = torch.autograd.grad(outputs.total, inputs.logprobs)
    # The KL alone moves the first token: 0.5 * (log pi - log pi_ref) / 4.
    assert gradient_.tolist() == pytest.approx([0.5 * 1.0 / 4, 0.5 / 4])


def test_neutral_importance_settings_change_no_bit():
    batch = make_batch([5, 3, 8])
    without = loss_of(batch, range(3), replace(ALL_TERMS, importance=ImportanceSettings()))
    wide = ImportanceSettings("sequence", bounds=(0.0, math.inf))
    kept = loss_of(batch, range(3), replace(ALL_TERMS, importance=wide))
    assert torch.equal(without.total, kept.total)
    assert [float(count) for count in without.importance] == [0, 0, 16, 16]


def test_behaviour_logprobs_without_a_cap_are_not_trained_on():
    behaviour = torch.tensor([-3.0, -0.5]).double()
    given_, plain = (
        laser_loss(micro_batch(behaviour_logprobs=logprobs), GRPO) for logprobs in (behaviour, None)
    )
    assert torch.equal(given_.total, plain.total)


@pytest.mark.parametrize(
    ("changes", "setting", "message"),
    [
        ({"z_logprobs": None}, {"alpha": 0.1}, "z_logprobs are missing"),
        ({"weights": None}, {"alpha": 0.1}, "without c_ref, rewards or weights"),
        ({}, {"importance": ImportanceSettings(cap=2.0)}, "behaviour_logprobs are missing"),
        ({"total_tokens": 1}, {}, "total_tokens is 1 with 2 tokens"),
        (
            {"total_tokens": 0, "logprobs": torch.zeros(0), "advantages": torch.zeros(0)},
            {},
            "total_tokens is 0",
        ),
    ],
)
def test_missing_inputs_are_refused(changes, setting, message):
    with pytest.raises(ValueError, match=message):
        laser_loss(micro_batch(**changes), replace(GRPO, **setting))
