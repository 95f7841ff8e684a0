"""When the self-reward joins the training: first plain GRPO, then the loss term, then the advantage mix."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Warm-up lengths in steps; steps count from 1. Source: LaSeR (arXiv 2510.14943), the two warm-up phases."""

    reasoning_warmup_steps: int
    self_reward_warmup_steps: int

    def loss_term_active(self, step: int) -> bool:
        """Whether the self-reward loss is part of this step. Raises ValueError for a step below 1."""
        if step < 1:
            raise ValueError(f"step is {step}, but steps count from 1")
        return step > self.reasoning_warmup_steps

    def advantage_mix_active(self, step: int) -> bool:
        """Whether self-rewards are mixed into this step's advantages. Raises ValueError for a step below 1."""
        return (
            self.loss_term_active(step) and step > self.reasoning_warmup_steps + self.self_reward_warmup_steps
        )
