"""Settings of vLLM engines, in training, evaluation and service."""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.config.schema import (
    ActorCount,
    CustomResources,
    Gib,
    Gpus,
    Mark,
    PositiveInt,
    Section,
    Share,
    Text,
)

EosTokens = Annotated[
    tuple[Text | Annotated[int, Field(ge=0, strict=True)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str | int) else value),
]
"""Tokens as texts or ids; one may stand without brackets."""


SAFE_FORMATS = ("safetensors", "fastsafetensors", "instanttensor", "runai_streamer", "sharded_state", "dummy")
"""vLLM's formats of weights that are safetensors, or none."""


def refuse_parts_of_gpus(key: str, gpus: float, tensor_parallel: int = 1) -> None:
    """Refuse a number of GPUs that Ray cannot give: `tensor_parallel` ranks of an actor reserve `gpus` each.

    Ray gives an actor a part of one GPU, or whole ones. Ranks that share an engine's weights need a GPU each.

    Raises:
        ValueError: The number is refused.
    """
    if gpus != int(gpus) and (gpus > 1 or tensor_parallel > 1):
        ranks = f" for each of {tensor_parallel} tensor-parallel ranks" if tensor_parallel > 1 else ""
        raise ValueError(
            f"{key}: is {gpus:g}{ranks}, but only a single GPU can be shared: use {math.ceil(gpus)}"
        )


class VllmConfig(Section):
    """The settings that all vLLM engines have."""

    SECTION: ClassVar[str]
    """The section's key, for errors."""

    tensor_parallel: Annotated[ActorCount, Mark.MAY_CHANGE] = 1
    """GPUs (or CPU processes) that share one engine's weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the engine; `auto` takes the precision that the model's folder names."""
    kv_cache_gib: Annotated[Gib | None, Mark.MAY_CHANGE] = None
    """KV cache of an engine in GiB; null means 0.5 on CPU, and vLLM's own share of the memory on GPU."""
    cpus: Annotated[Share, Mark.MAY_CHANGE, Mark.POOL_SIZE] = 1.0
    """CPUs that an engine reserves; fractions share a CPU."""
    gpus: Annotated[Gpus, Mark.MAY_CHANGE] = 0.0
    """GPUs that a tensor-parallel rank reserves; 0 runs the engine on CPU."""
    engine_args: Annotated[dict[str, Any], Mark.MAY_CHANGE] = Field(default={})
    """Further arguments of vLLM's EngineArgs; none that runs code or reads pickles that come with a model."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> "VllmConfig":
        refuse_parts_of_gpus(f"{self.SECTION}.gpus", self.gpus, self.tensor_parallel)
        return self

    @model_validator(mode="after")
    def _run_no_foreign_code(self) -> "VllmConfig":
        if self.engine_args.get("trust_remote_code", False) is not False:
            raise ValueError(
                f"{self.SECTION}.engine_args: trust_remote_code would run Python code that came with the "
                "model, which is never done: leave it out"
            )
        load_format = self.engine_args.get("load_format", SAFE_FORMATS[0])
        if load_format not in SAFE_FORMATS:
            raise ValueError(
                f"{self.SECTION}.engine_args: load_format={load_format} may read pickles, which run code: "
                f"leave it out, or use one of {', '.join(SAFE_FORMATS)}"
            )
        return self

    @model_validator(mode="after")
    def _one_step_at_a_time(self) -> "VllmConfig":
        """Weights change, and scores are read, between two decode steps: none may be in flight."""
        for key, plain in (("async_scheduling", False), ("pipeline_parallel_size", 1)):
            if (value := self.engine_args.get(key, plain)) != plain:
                raise ValueError(
                    f"{self.SECTION}.engine_args: {key}={value} keeps decode steps in flight, but weights "
                    f"are changed and scores are read between two steps: leave {key} out"
                )
        return self


class EngineConfig(VllmConfig):
    """The engines that generate in training and evaluation."""

    SECTION = "rollout"

    num_engines: Annotated[ActorCount, Mark.MAY_CHANGE, Mark.POOL_SIZE] = 1
    """vLLM engines; each is an actor."""
    max_prompt_tokens: PositiveInt = 2048
    """Longer prompts are skipped and counted."""
    max_response_tokens: PositiveInt = 8192
    """A response that is longer is cut: it is unfinished and has no score."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the engine; `auto` takes `learning.dtype`, in `laser eval` that of the model's folder."""
    resources: Annotated[CustomResources, Mark.MAY_CHANGE, Mark.POOL_SIZE] = Field(default={})
    """Custom resources that an engine reserves, such as {rollout: 1}; only nodes started with them run it."""
