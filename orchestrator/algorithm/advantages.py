"""Advantages: GRPO's from the verifier's rewards, and their mix with the model's own scores.

Samples lie on one flat axis; `group` gives each sample's problem, in any order and any numbering.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def group_advantages(
    rewards: Float[Tensor, "samples"], group: Int[Tensor, "samples"]
) -> Float[Tensor, "samples"]:
    """GRPO advantages `(r - mean) / (std + 1e-6)` with the unbiased std of the sample's group.

    Groups may differ in size; a group of one sample, or of equal rewards, gets 0.
    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.
    """
    mean, std = _group_mean_and_std(rewards, group)
    return ((rewards.double() - mean) / (std + 1e-6)).to(rewards.dtype)


def mix_self_rewards(
    advantages: Float[Tensor, "samples"],
    scores: Float[Tensor, "samples"],
    finished: Bool[Tensor, "samples"],
    group: Int[Tensor, "samples"],
    tau: float,
    filter_std: float,
) -> Float[Tensor, "samples"]:
    """Mix the self-rewards into verifier advantages: `(1 - tau) * A_v + tau * A_s`.

    `A_s = (clip(score, 0, 1) - mean) / std` (unbiased) over the finished samples of the group. `A_v` is kept where the
    group's std is at most `filter_std`, where fewer than two of the group finished, and by every truncated sample, whose
    score is never read and may be NaN. `scores` are those of the policy that generated; no gradient flows through them.

    Raises ValueError when a finished sample's score is NaN or `filter_std` is negative.
    Source: LaSeR (arXiv 2510.14943), self-rewarding advantages and their filter.
    """
    if filter_std < 0:
        raise ValueError(
            f"filter_std is {filter_std}, but a standard deviation is never below 0: set it to 0 or more"
        )
    unread = (finished & scores.isnan()).nonzero().flatten().tolist()
    if unread:
        raise ValueError(
            f"samples {unread[:8]} finished but have no score: read log pi(z_c) at their EOS, or mark them unfinished"
        )

    clipped = scores.detach().clamp(0, 1).double()
    mean, std = _group_mean_and_std(clipped, group, finished)
    # Fewer than two finished samples have a std of 0, so they never pass the filter.
    mixed = finished & (std > filter_std)
    self_advantages = ((clipped - mean) / std).to(advantages.dtype)
    return torch.where(mixed, (1 - tau) * advantages + tau * self_advantages, advantages)


def _group_mean_and_std(
    values: Float[Tensor, "samples"],
    group: Int[Tensor, "samples"],
    counted: Bool[Tensor, "samples"] | None = None,
) -> tuple[Float[Tensor, "samples"], Float[Tensor, "samples"]]:
    """Each sample's group mean and unbiased std over the counted samples, both 0 where there are too few for them."""
    # float64, because equal float32 rewards leave a rounding residue that the division by std + 1e-6 would enlarge.
    values = values.double()
    counts = torch.ones_like(values) if counted is None else counted.double()
    groups, index = torch.unique(group, return_inverse=True)

    def group_sum(terms: Float[Tensor, "samples"]) -> Float[Tensor, "samples"]:
        return values.new_zeros(len(groups)).index_add_(0, index, terms)[index]

    size = group_sum(counts)
    mean = group_sum(torch.where(counts > 0, values, 0.0)) / size.clamp(min=1)
    deviations = torch.where(counts > 0, values - mean, 0.0)
    return mean, (group_sum(deviations**2) / (size - 1).clamp(min=1)).sqrt()
