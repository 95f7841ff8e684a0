"""The settings of the policy update, which the learner ranks make."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.engine import refuse_parts_of_gpus
from orchestrator.config.schema import (
    ActorCount,
    CustomResources,
    Gpus,
    Mark,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    StepCount,
)


class LearningConfig(Section):
    """The policy update."""

    num_ranks: Annotated[ActorCount, Mark.MAY_CHANGE, Mark.POOL_SIZE] = 1
    """DeepSpeed ZeRO-3 ranks; each is an actor."""
    cpus_per_rank: Annotated[Share, Mark.MAY_CHANGE, Mark.POOL_SIZE] = 1.0
    """CPUs that a rank reserves; fractions share a CPU."""
    gpus_per_rank: Annotated[Gpus, Mark.MAY_CHANGE] = 0.0
    """GPUs that a rank reserves; 0 trains on CPU over gloo."""
    resources: Annotated[CustomResources, Mark.MAY_CHANGE, Mark.POOL_SIZE] = {}
    """Custom resources that a rank reserves."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass; optimiser states are always float32."""
    lr: Annotated[float, Field(ge=0)] = 1e-6
    """AdamW's learning rate, constant after the warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's momentum coefficients."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled weight decay."""
    warmup_steps: StepCount = 0
    """Steps over which the learning rate rises linearly."""
    grad_clip: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    mini_batches: PositiveInt = 1
    """Optimiser steps that are made from one batch."""
    tokens_per_micro_batch: Annotated[PositiveInt, Mark.MAY_CHANGE] = 16384
    """Prompt and response tokens, padding included, in one forward and backward pass of a rank."""
    skip_zero_gradients: Annotated[bool, Mark.MAY_CHANGE] = True
    """Leave out samples whose every loss term has a gradient of 0. The learner's means over tokens, such as
    the entropy, then cover the other samples; losses and updates stay the same."""
    stream: Annotated[bool, Mark.MAY_CHANGE] = False
    """Learn groups of the first mini-batch while others are generated. Updates change by rounding only. With
    self-rewarding such a sample costs two forward and backward passes instead of one, and gradients take up
    to three times their memory."""
    gradient_checkpointing: Annotated[bool, Mark.MAY_CHANGE] = False
    """Recompute activations in the backward pass to save memory."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What ZeRO-3 keeps in CPU memory when it trains on GPUs."""
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], Mark.MAY_CHANGE] = "sdpa"
    """transformers' attention implementation."""
    share_prefixes: Annotated[bool, Mark.MAY_CHANGE] = False
    """Compute what samples of a micro-batch have in common at their start once: a group's prompt. Updates
    change by rounding only. `tokens_per_micro_batch` then counts each prompt once and no padding; padded rows
    have at most twice as many places. It needs `attention: sdpa` and a model that attends to all tokens
    before one."""
    max_skipped_steps: Annotated[PositiveInt, Mark.MAY_CHANGE] = 3
    """Steps in a row without an update, because a number was not finite, after which the run fails."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed settings that replace those made from the other keys."""

    @model_validator(mode="after")
    def _ranks_can_do_it(self) -> "LearningConfig":
        refuse_parts_of_gpus("learning.gpus_per_rank", self.gpus_per_rank)
        if self.attention == "flash_attention_2" and not (self.gpus_per_rank and self.dtype == "bfloat16"):
            raise ValueError(
                "learning.attention: flash_attention_2 runs on GPUs and in bfloat16 only, but "
                f"learning.gpus_per_rank={self.gpus_per_rank:g} and learning.dtype={self.dtype}: set them to "
                "1 and bfloat16, or use sdpa"
            )
        if self.share_prefixes and self.attention != "sdpa":
            raise ValueError(
                f"learning.share_prefixes: needs learning.attention=sdpa, which is {self.attention}: set one "
                "of them back"
            )
        if self.stream and self.offload != "none":
            raise ValueError(
                "learning.stream: needs the gradients on the ranks' own devices, but learning.offload="
                f"{self.offload}: set learning.stream to false or learning.offload to none"
            )
        return self
