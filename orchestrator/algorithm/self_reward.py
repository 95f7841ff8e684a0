"""The last-token self-reward: the score, its loss, and the reference log-prob `c_ref` that both need.

In: log pi(z_c | x, y, EOS), read after the EOS of each finished solution. Out: a score, near 1 for a correct
solution and near 0 for a wrong one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def self_reward_score(
    z_logprob: Float[Tensor, "samples"], c_ref: float | Float[Tensor, "samples"], beta_v: float
) -> Float[Tensor, "samples"]:
    """`beta_v * (log pi(z_c | x, y, EOS) - c_ref)`, unclipped; above 0.5 the model calls its solution
    correct.

    Source: LaSeR (arXiv 2510.14943).

    Args:
        z_logprob: Natural log pi(z_c | x, y, EOS) at temperature 1.
        c_ref: The same under the reference model: one number for all samples, or one for each.
        beta_v: KL coefficient of the score.
    """
    return beta_v * (z_logprob - c_ref)


def class_weights(
    correct: Float[Tensor, "samples"], finished: Bool[Tensor, "samples"]
) -> Float[Tensor, "samples"]:
    """Weights that give correct and wrong solutions half of the self-reward loss each: `N / (2 * N_class)`.

    `N` is the number of finished samples in the whole rollout batch, and `N_class` the number of those in the
    sample's class: `correct` is 1 or 0. An unfinished sample gets 0. When one class is absent, the other gets
    0.5. Source: LaSeR (arXiv 2510.14943), class-level loss re-weighting.
    """
    right, wrong = finished & (correct > 0.5), finished & (correct <= 0.5)
    class_size = torch.where(right, right.sum(), wrong.sum()).clamp(min=1).to(correct.dtype)
    return torch.where(finished, finished.sum() / (2 * class_size), 0.0)


def self_reward_loss_terms(
    scores: Float[Tensor, "samples"], rewards: Float[Tensor, "samples"], weights: Float[Tensor, "samples"]
) -> Float[Tensor, "samples"]:
    """`w * (score - r)^2` of each sample; where the weight is 0, value and gradient are exactly 0.

    The reward r is 0 or 1 in the paper, and may be graded: see docs/method.md. An
    unfinished sample has weight 0, and may have any score, NaN too. Source: LaSeR (arXiv 2510.14943).
    """
    # The mask comes before the arithmetic: 0 * NaN is NaN, in the backward pass too.
    return weights * (torch.where(weights > 0, scores, rewards) - rewards) ** 2


@dataclass(frozen=True)
class Calibration:
    """A measured `c_ref`."""

    c_ref: float
    """Mean of log pi_ref(z_c | x, y, EOS)."""
    std: float
    """Its unbiased standard deviation over the solutions."""
    n: int
    """Finished solutions that it is measured on."""


def calibrate_c_ref(z_logprobs: Float[Tensor, "samples"]) -> Calibration:
    """Measure `c_ref` on the initial model's own solutions.

    Source: LaSeR (arXiv 2510.14943), which averages 300 solutions.

    Args:
        z_logprobs: log pi_ref(z_c | x, y, EOS) of each solution; NaN for an unfinished one, which is left
            out.

    Raises:
        ValueError: Fewer than two solutions finished.
    """
    finished = z_logprobs[~z_logprobs.isnan()].double()
    if len(finished) < 2:
        raise ValueError(
            f"c_ref cannot be calibrated: {len(finished)} of {len(z_logprobs)} solutions finished, and "
            "at least 2 must; raise rollout.max_response_tokens or self_reward.calibration_samples, or set "
            "loss.c_ref to a number"
        )
    return Calibration(finished.mean().item(), finished.std().item(), len(finished))
