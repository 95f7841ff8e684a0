"""Settings of the loss and the advantages of `laser train`."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.schema import Mark, PositiveFloat, Section, StepCount


class LossConfig(Section):
    """LaSeR's loss and advantages; docs/method.md has the formulas."""

    alpha: Annotated[float, Field(ge=0), Mark.AFTER_WARM_UP] = 0.1
    """Weight of the self-reward loss; 0 leaves plain GRPO."""
    beta_v: Annotated[PositiveFloat, Mark.AFTER_WARM_UP] = 0.1
    """The self-reward's KL coefficient: score = beta_v * (log pi(z_c) - c_ref)."""
    tau: Annotated[float, Field(ge=0, le=1), Mark.AFTER_WARM_UP] = 0.1
    """Share of the self-rewarding advantage in the mix."""
    correct_above: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A solution with a higher reward is called correct: in class weights, F1, accuracy and votes."""
    filter_std: Annotated[float, Field(ge=0), Mark.AFTER_WARM_UP] = 0.1
    """Groups whose scores have at most this standard deviation keep the verifier's advantages."""
    c_ref: Literal["calibrate", "exact"] | Annotated[float, Field(lt=0)] = "calibrate"
    """log pi_ref(z_c): a number, or the initial model's mean (calibrate), or a reference model's (exact)."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty to the initial model; above 0 it needs a reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL (Schulman's names)."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """PPO's lower clip of the probability ratio."""
    clip_high: PositiveFloat = 0.2
    """PPO's upper clip."""
    dual_clip: Annotated[float, Field(gt=1)] = 3.0
    """Bound of the loss where the advantage is negative."""
    importance_cap: PositiveFloat | None = None
    """Tokens are weighed by the ratio learner / engine of their probability, at most this; null weighs all
    the same. It corrects for older weights, and for the engine's rounding."""
    importance_bounds: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(gt=1)]] | None = None
    """Tokens whose ratio is below the first number or above the second are left out of the policy loss."""
    importance_level: Literal["token", "sequence", "geometric"] = "token"
    """The ratio: each token's own (token), or for all tokens of a sample their product (sequence) or
    geometric mean (geometric)."""
    reasoning_warmup_steps: StepCount = 0
    """Steps of plain GRPO before the self-reward loss joins (w_r)."""
    self_reward_warmup_steps: Annotated[StepCount, Mark.AFTER_WARM_UP] = 200
    """Steps after those before the advantage mix joins (w_s)."""
