"""The LaSeR loss of one micro-batch: policy loss, KL to the reference model and self-reward loss.

In: log-probs of the response tokens, and of z_c after each sample's EOS. Out: the micro-batch's share of the
loss, divided by the counts of the whole mini-batch. The sum over micro-batches and ranks is the loss of the
mini-batch, however the mini-batch is split.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orchestrator.algorithm.importance import ImportanceSettings, ImportanceWeights, importance_weights
from orchestrator.algorithm.policy import KLEstimator, kl_terms, policy_loss_terms
from orchestrator.algorithm.self_reward import self_reward_loss_terms, self_reward_score


@dataclass(frozen=True)
class LossSettings:
    """Weights and limits of the loss."""

    alpha: float
    """Weight of the self-reward loss; 0 leaves it out, but its metrics are computed all the same."""
    beta_v: float
    """KL coefficient of the self-reward score."""
    kl_coef: float
    """Weight of the KL to the reference model; above 0 the loss needs `ref_logprobs`."""
    kl_estimator: KLEstimator
    clip_low: float
    """PPO's lower limit of the ratio is `1 - clip_low`."""
    clip_high: float
    """PPO's upper limit of the ratio is `1 + clip_high`."""
    dual_clip: float = 3.0
    """Limit of the ratio where the advantage is negative."""
    importance: ImportanceSettings = field(default_factory=ImportanceSettings)
    """How the policy loss is corrected for `behaviour_logprobs`."""


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One micro-batch. Log-probs are natural logs at temperature 1; the token axis has no prompt tokens."""

    logprobs: Float[Tensor, "tokens"]
    """Of the current policy, with gradient."""
    advantages: Float[Tensor, "tokens"]
    total_tokens: int
    """Response tokens of the whole mini-batch, over all micro-batches and ranks."""
    total_finished: int
    """Finished samples of the same mini-batch."""
    old_logprobs: Float[Tensor, "tokens"] | None = None
    """Of the policy before the batch's first optimiser step; None in that step: they equal `logprobs`."""
    behaviour_logprobs: Float[Tensor, "tokens"] | None = None
    """From the rollout engine that sampled the tokens."""
    sample: Int[Tensor, "tokens"] | None = None
    """Number of each token's sample, ascending; importance weights of sequences need it."""
    ref_logprobs: Float[Tensor, "tokens"] | None = None
    """Of the reference model."""
    z_logprobs: Float[Tensor, "samples"] | None = None
    """log pi(z_c | x, y, EOS). Any value, NaN too, where the sample is unfinished. None for plain GRPO."""
    c_ref: float | Float[Tensor, "samples"] | None = None
    """log pi_ref(z_c | x, y, EOS): one number for all samples, or one for each."""
    rewards: Float[Tensor, "samples"] | None = None
    """The verifier's, 0 to 1: the score is trained towards it."""
    weights: Float[Tensor, "samples"] | None = None
    """Class weights over the whole rollout batch (`class_weights`); 0 for unfinished samples."""


class ImportanceCounts(NamedTuple):
    """Sums over the tokens of a micro-batch."""

    truncated: Int[Tensor, ""]
    masked: Int[Tensor, ""]
    weights: Float[Tensor, ""]
    squares: Float[Tensor, ""]
    """Of the weights' squares: with `weights` they give the effective sample size."""


@dataclass(frozen=True, eq=False)
class LossOutputs:
    """The micro-batch's shares: sum each scalar over micro-batches and ranks. Only `total` has a gradient."""

    total: Float[Tensor, ""]
    policy: Float[Tensor, ""]
    """Policy loss, a mean over tokens."""
    self_reward: Float[Tensor, ""]
    """Self-reward loss, a mean over finished samples, not yet times `alpha`."""
    kl: Float[Tensor, ""]
    """KL to the reference model, a mean over tokens, not yet times `kl_coef`; 0 without `ref_logprobs`."""
    clipped_tokens: Int[Tensor, ""]
    importance: ImportanceCounts
    scores: Float[Tensor, "samples"] | None
    """Unclipped self-reward scores, NaN where unfinished; None without `z_logprobs`."""


def laser_loss(inputs: LossInputs, settings: LossSettings) -> LossOutputs:
    """`L_policy + kl_coef * KL + alpha * L_self_reward`.

    The first two are means over tokens, the last is a mean over finished samples. A micro-batch without
    tokens gives 0 and has a gradient, so that a rank without samples can step with the others. Source: LaSeR
    (arXiv 2510.14943).

    Raises:
        ValueError: A term has a weight but not its inputs, or `total_tokens` is too small to be the count of
            the whole mini-batch.
    """
    tokens = len(inputs.logprobs)
    if inputs.total_tokens < max(1, tokens):
        raise ValueError(
            f"total_tokens is {inputs.total_tokens} with {tokens} tokens in this micro-batch alone: "
            "give the count of the whole mini-batch, summed over micro-batches and ranks"
        )
    policy, clipped_tokens, importance = _policy(inputs, settings)
    total = policy

    kl = torch.zeros_like(policy)
    if inputs.ref_logprobs is not None:
        kl = kl_terms(inputs.logprobs, inputs.ref_logprobs, settings.kl_estimator).sum() / inputs.total_tokens
    elif settings.kl_coef != 0:
        raise ValueError(
            f"kl_coef is {settings.kl_coef}, but ref_logprobs are missing: run the reference model, "
            "or set kl_coef to 0"
        )
    if settings.kl_coef != 0:
        total = total + settings.kl_coef * kl

    self_reward, scores = torch.zeros_like(policy), None
    if inputs.z_logprobs is not None:
        self_reward, scores = _self_reward(inputs, settings.beta_v)
    elif settings.alpha != 0:
        raise ValueError(
            f"alpha is {settings.alpha}, but z_logprobs are missing: read log pi(z_c) at each EOS, "
            "or set alpha to 0"
        )
    # Not added when alpha is 0: adding 0 times the term could change the last bit of plain GRPO.
    if settings.alpha != 0:
        total = total + settings.alpha * self_reward

    return LossOutputs(
        total=total,
        policy=policy.detach(),
        self_reward=self_reward.detach(),
        kl=kl.detach(),
        clipped_tokens=clipped_tokens,
        importance=importance,
        scores=scores,
    )


def _policy(
    inputs: LossInputs, settings: LossSettings
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], ImportanceCounts]:
    """The policy loss, the number of clipped tokens, and the sums of the importance weights.

    A token that weighs 0 still counts in the mean: else the others would weigh more.
    """
    logprobs = inputs.logprobs
    old_logprobs = logprobs.detach() if inputs.old_logprobs is None else inputs.old_logprobs
    terms = policy_loss_terms(
        logprobs, old_logprobs, inputs.advantages, settings.clip_low, settings.clip_high, settings.dual_clip
    )
    token_losses = terms.loss
    nowhere = torch.zeros_like(terms.clipped)
    importance = ImportanceWeights(torch.ones_like(old_logprobs), nowhere, nowhere)
    if settings.importance.corrects:
        if inputs.behaviour_logprobs is None:
            raise ValueError(
                "an importance cap or bounds are set, but behaviour_logprobs are missing: pass the rollout "
                "engine's, or set neither"
            )
        importance = importance_weights(
            old_logprobs, inputs.behaviour_logprobs, inputs.sample, settings.importance
        )
        token_losses = token_losses * importance.weights
    counts = ImportanceCounts(
        importance.truncated.sum(),
        importance.masked.sum(),
        importance.weights.sum(),
        importance.weights.square().sum(),
    )
    return token_losses.sum() / inputs.total_tokens, terms.clipped.sum(), counts


def _self_reward(inputs: LossInputs, beta_v: float) -> tuple[Float[Tensor, ""], Float[Tensor, "samples"]]:
    """The self-reward loss, not yet times alpha, and the detached scores."""
    if inputs.z_logprobs is None or inputs.c_ref is None or inputs.rewards is None or inputs.weights is None:
        raise ValueError(
            "z_logprobs come without c_ref, rewards or weights: the self-reward loss needs all of them"
        )
    scores = self_reward_score(inputs.z_logprobs, inputs.c_ref, beta_v)
    # When no sample of the mini-batch finished, the loss is 0 and not 0 / 0.
    loss = self_reward_loss_terms(scores, inputs.rewards, inputs.weights).sum() / max(
        inputs.total_finished, 1
    )
    return loss, torch.where(inputs.weights > 0, scores.detach(), torch.nan)
