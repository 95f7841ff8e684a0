"""GRPO's advantages from the verifier's rewards, and their mix with the model's own scores.

Samples lie on one flat axis; `group` gives the problem of each sample, in any order and with any numbers.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def group_advantages(
    rewards: Float[Tensor, "samples"], group: Int[Tensor, "samples"]
) -> Float[Tensor, "samples"]:
    """GRPO advantages: `(r - mean) / (std + 1e-6)`, with mean and unbiased std over the sample's group.

    Groups may differ in size. A group of one sample, or of equal rewards, gets 0.
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
    """Mix self-rewards into the verifier's advantages: `(1 - tau) * A_v + tau * A_s`.

    `A_s = (clip(score, 0, 1) - mean) / std`, with mean and unbiased std over the finished samples of the
    group. A sample keeps `A_v` alone when it is unfinished, when fewer than two samples of its group
    finished, or when the std of its group is at most `filter_std`. Source: LaSeR (arXiv 2510.14943),
    self-rewarding advantages and their filter.

    Args:
        advantages: `A_v`, from `group_advantages`.
        scores: Self-rewards under the policy that generated the samples. No gradient flows through them. The
            score of an unfinished sample is not read, and may be NaN.
        tau: Weight of `A_s`, 0 to 1.
        filter_std: Groups whose scores spread no more than this are not mixed.

    Raises:
        ValueError: A finished sample's score is NaN, or `filter_std` is negative.
    """
    if filter_std < 0:
        raise ValueError(
            f"filter_std is {filter_std}, but a standard deviation is never below 0: set it to 0 or more"
        )
    unread = (finished & scores.isnan()).nonzero().flatten().tolist()
    if unread:
        raise ValueError(
            f"samples {unread[:8]} finished but have no score: read log pi(z_c) at their EOS, "
            "or mark them unfinished"
        )

    clipped = scores.detach().clamp(0, 1).double()
    mean, std = _group_mean_and_std(clipped, group, finished)
    # The std of fewer than two finished samples is 0, which never passes the filter.
    mixed = finished & (std > filter_std)
    self_advantages = ((clipped - mean) / std).to(advantages.dtype)
    return torch.where(mixed, (1 - tau) * advantages + tau * self_advantages, advantages)


def _group_mean_and_std(
    values: Float[Tensor, "samples"],
    group: Int[Tensor, "samples"],
    counted: Bool[Tensor, "samples"] | None = None,
) -> tuple[Float[Tensor, "samples"], Float[Tensor, "samples"]]:
    """Mean and unbiased std over the counted samples of each sample's group; 0 where there are too few."""
    # In float64: equal float32 rewards leave a rounding residue, which the division by std + 1e-6 would
    # enlarge.
    values = values.double()
    counts = torch.ones_like(values) if counted is None else counted.double()
    groups, index = torch.unique(group, return_inverse=True)

    def group_sum(terms: Float[Tensor, "samples"]) -> Float[Tensor, "samples"]:
        return values.new_zeros(len(groups)).index_add_(0, index, terms)[index]

    size = group_sum(counts)
    mean = group_sum(torch.where(counts > 0, values, 0.0)) / size.clamp(min=1)
    deviations = torch.where(counts > 0, values - mean, 0.0)
    return mean, (group_sum(deviations**2) / (size - 1).clamp(min=1)).sqrt()
