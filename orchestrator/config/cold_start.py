"""Settings of `laser sft`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.engine import refuse_parts_of_gpus
from orchestrator.config.paths import LocalPath, PathOrName
from orchestrator.config.schema import (
    ActorCount,
    Gpus,
    Mark,
    PositiveFloat,
    PositiveInt,
    RunName,
    Section,
    Seed,
    Share,
    StepCount,
    Text,
)
from orchestrator.config.sources import ChatConfig, DataConfig
from orchestrator.config.training import ModelConfig, TrackingConfig


class SFTDataConfig(ChatConfig):
    """Worked solutions to train on."""

    train: PathOrName
    """Worked solutions: a file, a folder or pattern of files, or a data set of the hub, as in `data.train` of
    `laser train`."""
    problem_field: Text = "problem"
    """Field that holds the problem: a text, or a list of chat messages."""
    solution_field: Text = "solution"
    """Field that holds the worked solution."""
    instruction: str = DataConfig.model_fields["instruction"].default
    """Text after each problem; use the same one in the training that follows."""
    max_tokens: PositiveInt = 2048
    """Longer samples are dropped and counted."""


class SFTLearningConfig(Section):
    """The supervised training."""

    num_ranks: Annotated[ActorCount, Mark.MAY_CHANGE] = 1
    """Ray Train workers; each is a DeepSpeed ZeRO-3 rank."""
    cpus_per_rank: Annotated[Share, Mark.MAY_CHANGE] = 1.0
    """CPUs that a rank reserves."""
    gpus_per_rank: Annotated[Gpus, Mark.MAY_CHANGE] = 0.0
    """GPUs that a rank reserves; 0 trains on CPU over gloo."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass."""
    batch_size: PositiveInt = 64
    """Samples of an optimiser step, over all ranks."""
    lr: PositiveFloat = 1e-5
    """AdamW's peak learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """AdamW's momentum coefficients."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    warmup_steps: StepCount = 50
    """Steps over which the learning rate rises linearly; then it falls as a cosine."""
    final_lr_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The learning rate at the end, as a share of the peak."""
    grad_clip: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    tokens_per_micro_batch: Annotated[PositiveInt, Mark.MAY_CHANGE] = 16384
    """Tokens, padding included, in one forward and backward pass of a rank."""
    gradient_checkpointing: Annotated[bool, Mark.MAY_CHANGE] = False
    """Recompute activations in the backward pass to save memory."""
    max_skipped_steps: PositiveInt = 3
    """Steps in a row without an update, because a number was not finite, after which the cold start fails."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed settings that replace those made from the other keys."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> "SFTLearningConfig":
        refuse_parts_of_gpus("learning.gpus_per_rank", self.gpus_per_rank)
        return self


class SFTSelfRewardConfig(Section):
    """The token that the self-reward will be read from."""

    token: Text | None = None
    """z_c; the loss then also covers one token after EOS, which makes log pi(z_c) nearly uniform there."""


class SFTRunSection(Section):
    """Name, place and length of the cold start."""

    name: RunName
    """Name of the run: its folder under `run.dir` and its MLflow run name."""
    dir: Annotated[LocalPath, Mark.MAY_CHANGE] = Path("runs")
    """Folder of all runs."""
    steps: PositiveInt
    """Optimiser steps."""
    seed: Seed = 0
    """Seed of the sample order."""


class SFTConfig(Section):
    """Settings of `laser sft`."""

    run: SFTRunSection
    model: ModelConfig
    data: SFTDataConfig
    learning: SFTLearningConfig = SFTLearningConfig()
    self_reward: SFTSelfRewardConfig = SFTSelfRewardConfig()
    tracking: Annotated[TrackingConfig, Mark.MAY_CHANGE] = TrackingConfig()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.dir / self.run.name

    @model_validator(mode="after")
    def _samples_fit(self) -> "SFTConfig":
        if self.data.max_tokens > self.learning.tokens_per_micro_batch:
            raise ValueError(
                f"learning.tokens_per_micro_batch: {self.learning.tokens_per_micro_batch} is less than the "
                f"longest sample, data.max_tokens = {self.data.max_tokens}: use at least that"
            )
        return self
