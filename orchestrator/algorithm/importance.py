"""Importance weights: they correct the policy loss for tokens that other weights than the learner's sampled.

In: log-probs of the same tokens under the policy that a step starts from ("old") and under the engine that
sampled them ("behaviour"). Out: one constant factor a token, and what became of the ratios.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ImportanceLevel = Literal["token", "sequence", "geometric"]


@dataclass(frozen=True)
class ImportanceSettings:
    """How tokens are weighed. The default weighs each token 1."""

    level: ImportanceLevel = "token"
    """What the ratio of a token is (`importance_ratios`)."""
    cap: float | None = None
    """Largest weight; None weighs no token by its ratio."""
    bounds: tuple[float, float] | None = None
    """Tokens whose ratio is outside weigh 0; None keeps all."""

    @property
    def corrects(self) -> bool:
        """Whether any token may weigh anything but 1."""
        return self.cap is not None or self.bounds is not None


class ImportanceWeights(NamedTuple):
    """The factor of each token in the policy loss, without gradient."""

    weights: Float[Tensor, "tokens"]
    truncated: Bool[Tensor, "tokens"]
    """True where the cap replaced the ratio of a token that still counts."""
    masked: Bool[Tensor, "tokens"]
    """True where the ratio is out of bounds: the weight is 0."""


def importance_ratios(
    old_logprobs: Float[Tensor, "tokens"],
    behaviour_logprobs: Float[Tensor, "tokens"],
    sample: Int[Tensor, "tokens"] | None,
    level: ImportanceLevel,
) -> Float[Tensor, "tokens"]:
    """pi_old / pi_behaviour of each token, without gradient; 0 to infinity.

    With `token` it is the token's own ratio. With `sequence` every token of a sample has the product over the
    sample's tokens, which is the sample's importance weight: unbiased, but its spread grows with the length.
    With `geometric` it has the geometric mean of them, which means the same at any length, and is biased.
    Sources: token, IMPALA (arXiv 1802.01561), section 4.1; geometric mean, GSPO (arXiv 2507.18071),
    equation 7.

    Args:
        sample: Number of each token's sample, in ascending order; only `token` needs none.

    Raises:
        ValueError: The level needs samples.
    """
    log_ratios = (old_logprobs - behaviour_logprobs).detach()
    if level == "token":
        return log_ratios.exp()
    if sample is None:
        raise ValueError(f"importance weights by {level} need the sample of each token")
    lengths = torch.bincount(sample)
    sums = torch.segment_reduce(log_ratios, "sum", lengths=lengths) if len(sample) else log_ratios
    if level == "geometric":
        sums = sums / lengths.clamp(min=1)
    return sums.exp()[sample]


def importance_weights(
    old_logprobs: Float[Tensor, "tokens"],
    behaviour_logprobs: Float[Tensor, "tokens"],
    sample: Int[Tensor, "tokens"] | None,
    settings: ImportanceSettings,
) -> ImportanceWeights:
    """`min(ratio, cap)`, or 1 without a cap; 0 where the ratio is out of bounds.

    Sources: truncation, IMPALA (arXiv 1802.01561), section 4.1; masking, IcePop (Ring-1T, arXiv 2510.18855).

    Args:
        sample: As in `importance_ratios`.
    """
    ratios = importance_ratios(old_logprobs, behaviour_logprobs, sample, settings.level)
    nowhere = torch.zeros_like(ratios, dtype=torch.bool)
    weights = torch.ones_like(ratios) if settings.cap is None else ratios.clamp(max=settings.cap)
    truncated = nowhere if settings.cap is None else ratios > settings.cap
    if settings.bounds is None:
        return ImportanceWeights(weights, truncated, nowhere)
    low, high = settings.bounds
    masked = (ratios < low) | (ratios > high)
    return ImportanceWeights(torch.where(masked, 0.0, weights), truncated & ~masked, masked)
