"""The LaSeR loss of one micro-batch: policy loss, KL to the reference model and self-reward loss.

In: log-probs of the flat response tokens and of z_c at each sample's EOS. Out: a loss already divided by the counts of the whole
mini-batch, so that the sum over micro-batches and ranks is the mini-batch's loss, however it was split.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orchestrator.algorithm.policy import (
    KLEstimator,
    kl_terms,
    policy_loss_terms,
    truncated_importance_weights,
)
from orchestrator.algorithm.self_reward import self_reward_loss_terms, self_reward_score


@dataclass(frozen=True)
class LossSettings:
    alpha: float
    """Weight of the self-reward loss; 0 leaves it out of the loss, and its metrics are still computed."""
    beta_v: float
    """KL coefficient of the self-reward score."""
    kl_coef: float
    """Weight of the KL to the reference model; above 0 it needs `ref_logprobs`."""
    kl_estimator: KLEstimator
    clip_low: float
    clip_high: float
    dual_clip: float = 3.0
    tis_cap: float | None = None
    """Cap of the importance weights that correct for `behaviour_logprobs`; None trains without the correction."""


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One micro-batch. Log-probs are natural logs at temperature 1; only response tokens are on the token axis."""

    logprobs: Float[Tensor, "tokens"]
    advantages: Float[Tensor, "tokens"]
    total_tokens: int
    """Response tokens of the optimiser step's mini-batch, over all micro-batches and ranks."""
    total_finished: int
    """Finished samples of the same mini-batch."""
    old_logprobs: Float[Tensor, "tokens"] | None = None
    """Of the policy before this batch's first optimiser step; None when this is that step: then they are `logprobs`, detached."""
    behaviour_logprobs: Float[Tensor, "tokens"] | None = None
    """As the rollout engine reported them."""
    ref_logprobs: Float[Tensor, "tokens"] | None = None
    z_logprobs: Float[Tensor, "samples"] | None = None
    """log pi(z_c | x, y, EOS); any value, NaN included, where the sample is unfinished. None for plain GRPO."""
    c_ref: float | Float[Tensor, "samples"] | None = None
    rewards: Float[Tensor, "samples"] | None = None
    weights: Float[Tensor, "samples"] | None = None
    """Class weights of the whole rollout batch (`class_weights`), 0 for unfinished samples."""


@dataclass(frozen=True, eq=False)
class LossOutputs:
    """`total` is to be differentiated, the rest is detached. Every scalar is summed over micro-batches and ranks."""

    total: Float[Tensor, ""]
    policy: Float[Tensor, ""]
    """Share of the mini-batch's token-mean policy loss."""
    self_reward: Float[Tensor, ""]
    """Share of the mini-batch's self-reward loss, before `alpha`."""
    kl: Float[Tensor, ""]
    """Share of the mini-batch's token-mean KL to the reference model, before `kl_coef`; 0 without `ref_logprobs`."""
    clipped_tokens: Int[Tensor, ""]
    scores: Float[Tensor, "samples"] | None
    """Unclipped self-reward scores, NaN where unfinished; None without `z_logprobs`."""


def laser_loss(inputs: LossInputs, settings: LossSettings) -> LossOutputs:
    """`L_policy + kl_coef * KL + alpha * L_self_reward`, the first two as token means, the last as a mean over finished samples.

    A micro-batch without tokens gives 0 and can still be differentiated, so that a rank without samples steps with the others.
    Raises ValueError when a term has a weight but not its inputs, or `total_tokens` cannot be the count of the whole mini-batch.
    Source: LaSeR (arXiv 2510.14943).
    """
    logprobs = inputs.logprobs
    if inputs.total_tokens < max(1, len(logprobs)):
        raise ValueError(
            f"total_tokens is {inputs.total_tokens} with {len(logprobs)} tokens in this micro-batch alone: "
            "give the count of the whole mini-batch, summed over micro-batches and ranks"
        )
    old_logprobs = logprobs.detach() if inputs.old_logprobs is None else inputs.old_logprobs

    terms = policy_loss_terms(
        logprobs, old_logprobs, inputs.advantages, settings.clip_low, settings.clip_high, settings.dual_clip
    )
    token_losses = terms.loss
    if settings.tis_cap is not None:
        if inputs.behaviour_logprobs is None:
            raise ValueError(
                "tis_cap is set, but behaviour_logprobs are missing: pass the rollout engine's, or set tis_cap to None"
            )
        token_losses = token_losses * truncated_importance_weights(
            old_logprobs, inputs.behaviour_logprobs, settings.tis_cap
        )
    policy = token_losses.sum() / inputs.total_tokens
    total = policy

    kl = torch.zeros_like(policy)
    if inputs.ref_logprobs is not None:
        kl = kl_terms(logprobs, inputs.ref_logprobs, settings.kl_estimator).sum() / inputs.total_tokens
    elif settings.kl_coef != 0:
        raise ValueError(
            f"kl_coef is {settings.kl_coef}, but ref_logprobs are missing: run the reference model, or set kl_coef to 0"
        )
    if settings.kl_coef != 0:
        total = total + settings.kl_coef * kl

    self_reward, scores = torch.zeros_like(policy), None
    if inputs.z_logprobs is not None:
        self_reward, scores = _self_reward(inputs, settings.beta_v)
    elif settings.alpha != 0:
        raise ValueError(
            f"alpha is {settings.alpha}, but z_logprobs are missing: read log pi(z_c) at each EOS, or set alpha to 0"
        )
    # Left out rather than multiplied by 0, so that plain GRPO is the same to the last bit.
    if settings.alpha != 0:
        total = total + settings.alpha * self_reward

    return LossOutputs(
        total=total,
        policy=policy.detach(),
        self_reward=self_reward.detach(),
        kl=kl.detach(),
        clipped_tokens=terms.clipped.sum(),
        scores=scores,
    )


def _self_reward(inputs: LossInputs, beta_v: float) -> tuple[Float[Tensor, ""], Float[Tensor, "samples"]]:
    """The share of the self-reward loss, before alpha, and the detached scores."""
    if inputs.z_logprobs is None or inputs.c_ref is None or inputs.rewards is None or inputs.weights is None:
        raise ValueError(
            "z_logprobs come without c_ref, rewards or weights: the self-reward loss needs all of them"
        )
    scores = self_reward_score(inputs.z_logprobs, inputs.c_ref, beta_v)
    # A mini-batch in which nothing finished has a loss of 0, not 0 / 0.
    loss = self_reward_loss_terms(scores, inputs.rewards, inputs.weights).sum() / max(
        inputs.total_finished, 1
    )
    return loss, torch.where(inputs.weights > 0, scores.detach(), torch.nan)
