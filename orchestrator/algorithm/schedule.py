"""When the self-reward joins the training: plain GRPO, then the loss term, then mixed advantages too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The two warm-up phases, in steps. Steps count from 1. Source: LaSeR (arXiv 2510.14943)."""

    reasoning_warmup_steps: int
    """Steps of plain GRPO."""
    self_reward_warmup_steps: int
    """Steps after these with the loss term, but without the mix."""

    def loss_term_active(self, step: int) -> bool:
        """Whether the self-reward loss is part of this step's loss.

        Raises:
            ValueError: The step is below 1.
        """
        if step < 1:
            raise ValueError(f"step is {step}, but steps count from 1")
        return step > self.reasoning_warmup_steps

    def advantage_mix_active(self, step: int) -> bool:
        """Whether self-rewards are mixed into this step's advantages.

        Raises:
            ValueError: The step is below 1.
        """
        return (
            self.loss_term_active(step) and step > self.reasoning_warmup_steps + self.self_reward_warmup_steps
        )
