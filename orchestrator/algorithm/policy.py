"""Terms of the policy loss, one value a token: clipped surrogate and KL estimators."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20: exp() of more overflows, and 0 * inf in the backward pass is NaN."""


class PolicyTerms(NamedTuple):
    """The policy loss of each token."""

    loss: Float[Tensor, "tokens"]
    clipped: Bool[Tensor, "tokens"]
    """True where a clip replaced the surrogate: the token has no gradient."""


def policy_loss_terms(
    logprobs: Float[Tensor, "tokens"],
    old_logprobs: Float[Tensor, "tokens"],
    advantages: Float[Tensor, "tokens"],
    clip_low: float,
    clip_high: float,
    dual_clip: float = 3.0,
) -> PolicyTerms:
    """PPO's clipped surrogate, negated: `max(-A * ratio, -A * clamp(ratio, 1 - clip_low, 1 + clip_high))`.

    Where `A < 0` the loss is also capped at `-A * dual_clip`.
    Sources: PPO (arXiv 1707.06347), equation 7; dual clip (arXiv 1912.09729).

    Args:
        logprobs: Natural logs under the current policy, with gradient.
        old_logprobs: Under the policy before the batch's first optimiser step.

    Raises:
        ValueError: `dual_clip` is not above 1.
    """
    if not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}; it limits the ratio from above and must exceed 1")
    ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    surrogate = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    cap = torch.where(advantages < 0, -advantages * dual_clip, torch.inf)
    loss = torch.maximum(surrogate, bounded).minimum(cap)
    return PolicyTerms(loss, (bounded > surrogate) | (surrogate > cap))


def kl_terms(
    logprobs: Float[Tensor, "tokens"], ref_logprobs: Float[Tensor, "tokens"], estimator: KLEstimator
) -> Float[Tensor, "tokens"]:
    """Estimates of KL(pi || pi_ref) at tokens sampled from pi, in nats.

    k1 is unbiased, but its expected gradient is 0: it measures and does not regularise. k2 has the gradient
    of the KL. k3 is unbiased and never negative. Source: http://joschu.net/blog/kl-approx.html

    Raises:
        ValueError: The estimator has another name.
    """
    log_ratio = (ref_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    match estimator:
        case "k1":
            return -log_ratio
        case "k2":
            return log_ratio**2 / 2
        case "k3":
            return log_ratio.expm1() - log_ratio
    raise ValueError(f"the KL estimator is {estimator!r}; choose k1, k2 or k3")
