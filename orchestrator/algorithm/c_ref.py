"""Check the method's one assumption for a reference log-prob `c_ref`. Plain numbers, no tensors.

In: `c_ref`, set or measured, and `beta_v`. Out: a `CRefCheck`.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CRefCheck:
    """Whether the method's assumption holds: "ok" and "warn" may train, "refuse" may not."""

    level: Literal["ok", "warn", "refuse"]
    messages: tuple[str, ...] = ()


def check_c_ref(c_ref: float, beta_v: float) -> CRefCheck:
    """Check that `pi_ref(z_c) * exp(1 / beta_v)` is far below 1, so that `log Z` is 0 and the score needs no
    normaliser.

    A value of 1 or more is refused; above 0.05 there is a warning. There is one, too, where the score's upper
    limit `beta_v * |c_ref|`, reached at pi(z_c) = 1, is below 1.3.
    Source: LaSeR (arXiv 2510.14943), the closed form of the self-verification objective.

    Args:
        c_ref: Mean of the natural log pi_ref(z_c | x, y, EOS).
        beta_v: KL coefficient of the self-reward score.

    Raises:
        ValueError: `beta_v` is not positive.
    """
    if not beta_v > 0:
        raise ValueError(f"loss.beta_v is {beta_v}; it must be above 0")
    if not math.isfinite(c_ref):
        return CRefCheck(
            "refuse",
            (
                f"c_ref is {c_ref}, but log pi_ref(z_c) must be finite: check that the model can sample "
                "self_reward.token",
            ),
        )

    log_leak = c_ref + 1 / beta_v  # stays a logarithm, because exp() could overflow
    condition = (
        f"pi_ref(z_c) * exp(1 / beta_v) = exp({log_leak:.4g}) at c_ref {c_ref:.4g} and beta_v {beta_v:.4g}"
    )
    remedy = "choose a rarer self_reward.token or a larger loss.beta_v"
    if log_leak >= 0:
        return CRefCheck(
            "refuse", (f"{condition}: it must be far below 1, or the score is no reward; {remedy}",)
        )

    messages = []
    if log_leak > math.log(0.05):
        messages.append(f"{condition}: above 0.05 the score is biased; {remedy}")
    if beta_v * -c_ref < 1.3:
        messages.append(
            f"the score cannot exceed beta_v * |c_ref| = {beta_v * -c_ref:.3g}, too close to its target, 1; "
            f"{remedy}"
        )
    return CRefCheck("warn" if messages else "ok", tuple(messages))
