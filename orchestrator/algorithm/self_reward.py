"""The last-token self-reward: the score, its loss terms, and the reference log-prob `c_ref` that both rest on.

In: log pi(z_c | x, y, EOS), read at the EOS of each finished solution. Out: a score near 1 for right, near 0 for wrong.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def self_reward_score(
    z_logprob: Float[Tensor, "samples"], c_ref: float | Float[Tensor, "samples"], beta_v: float
) -> Float[Tensor, "samples"]:
    """`beta_v * (log pi(z_c | x, y, EOS) - c_ref)`, unclipped; above 0.5 the model calls its solution correct.

    `z_logprob` and `c_ref` are natural-log probabilities without sampling temperature; a tensor `c_ref` holds the reference
    model's own value for each sample. Source: LaSeR (arXiv 2510.14943).
    """
    return beta_v * (z_logprob - c_ref)


def class_weights(
    rewards: Float[Tensor, "samples"], finished: Bool[Tensor, "samples"]
) -> Float[Tensor, "samples"]:
    """Weights that give right and wrong solutions half of the self-reward loss each: `N / (2 * N_class)`, 0 for unfinished.

    `N` counts the finished samples of the whole rollout batch, `N_class` those of the sample's class (reward 1 or 0). With one
    class absent the formula leaves the other at 0.5. Source: LaSeR (arXiv 2510.14943), class-level loss re-weighting.
    """
    correct = finished & (rewards > 0.5)
    wrong = finished & (rewards <= 0.5)
    class_size = torch.where(correct, correct.sum(), wrong.sum()).clamp(min=1).to(rewards.dtype)
    return torch.where(finished, finished.sum() / (2 * class_size), 0.0)


def self_reward_loss_terms(
    scores: Float[Tensor, "samples"], rewards: Float[Tensor, "samples"], weights: Float[Tensor, "samples"]
) -> Float[Tensor, "samples"]:
    """`w * (score - r_v)^2` for each sample; exactly 0, with a gradient of exactly 0, where the weight is 0.

    An unfinished sample (weight 0) may have any score, NaN included. Source: LaSeR (arXiv 2510.14943).
    """
    # Masked before the arithmetic: 0 * NaN is NaN, in the backward pass too.
    return weights * (torch.where(weights > 0, scores, rewards) - rewards) ** 2


@dataclass(frozen=True)
class Calibration:
    """`c_ref` as measured: mean and unbiased std of log pi_ref(z_c | x, y, EOS) over `n` finished solutions."""

    c_ref: float
    std: float
    n: int


def calibrate_c_ref(z_logprobs: Float[Tensor, "samples"]) -> Calibration:
    """Measure `c_ref` on the initial model's own solutions; NaN marks an unfinished one and is left out.

    Raises ValueError when fewer than two solutions finished.
    Source: LaSeR (arXiv 2510.14943), which averages 300 solutions.
    """
    finished = z_logprobs[~z_logprobs.isnan()].double()
    if len(finished) < 2:
        raise ValueError(
            f"c_ref cannot be calibrated: {len(finished)} of {len(z_logprobs)} solutions finished and at least 2 must; "
            "raise rollout.max_response_tokens, calibrate on more problems, or set loss.c_ref to a number"
        )
    return Calibration(finished.mean().item(), finished.std().item(), len(finished))
