"""Whether the method's one assumption holds for a reference log-prob `c_ref`; plain numbers, no tensors.

In: `c_ref`, given or measured, and `beta_v`. Out: a `CRefCheck`.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CRefCheck:
    """Whether the method's one assumption holds for a token: train on "ok" and "warn", not on "refuse"."""

    level: Literal["ok", "warn", "refuse"]
    messages: tuple[str, ...] = ()


def check_c_ref(c_ref: float, beta_v: float) -> CRefCheck:
    """Check `pi_ref(z_c) * exp(1 / beta_v) << 1`, under which `log Z` is 0 and the score needs no normaliser.

    `c_ref` is the mean of log pi_ref(z_c | x, y, EOS). Refused from 1 on; warned about above 0.05, and where the score's upper
    limit `beta_v * |c_ref|` (reached at pi(z_c) = 1) is below 1.3. Raises ValueError unless `beta_v` is positive.
    Source: LaSeR (arXiv 2510.14943), the closed form of the self-verification objective.
    """
    if not beta_v > 0:
        raise ValueError(f"loss.beta_v is {beta_v}; it must be above 0")
    if not math.isfinite(c_ref):
        return CRefCheck(
            "refuse",
            (
                f"c_ref is {c_ref}: log pi_ref(z_c) must be finite; check that self_reward.token is never barred",
            ),
        )

    log_leak = (
        c_ref + 1 / beta_v
    )  # the log of the quantity that must be far below 1; its exponential could overflow
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
            f"the score cannot exceed beta_v * |c_ref| = {beta_v * -c_ref:.3g}, too close to its target of 1; {remedy}"
        )
    return CRefCheck("warn" if messages else "ok", tuple(messages))
