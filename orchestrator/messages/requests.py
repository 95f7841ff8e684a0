"""Requests to an engine, and the settings that it starts with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CPU_KV_CACHE_GIB = 0.5


@dataclass(frozen=True)
class EngineSettings:
    """Settings of an engine."""

    model_path: str
    eos_tokens: tuple[int, ...]
    z_token: int | None
    """Id of z_c; None switches the score off."""
    max_prompt_tokens: int
    max_response_tokens: int
    dtype: str
    tensor_parallel: int = 1
    threads: int = 1
    """Of torch, in an engine on CPU."""
    kv_cache_gib: float | None = None
    """None leaves it to vLLM on a GPU and is `CPU_KV_CACHE_GIB` on a CPU."""
    on_gpu: bool = False
    sleeps: bool = False
    """Whether it shares its GPU with learner ranks, in turns."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """The user's arguments of vLLM's `EngineArgs`."""


@dataclass(frozen=True)
class GroupRequest:
    """Sample `num_samples` solutions of one problem; sample i draws from seed `seed + i`."""

    prompt_ids: Sequence[int]
    num_samples: int
    seed: int
    temperature: float = 1.0


@dataclass(frozen=True)
class SampleRequest:
    """Sample one solution."""

    prompt_ids: Sequence[int]
    seed: int
    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stream: bool = False
    """Whether each decode step returns its tokens, instead of the last one all of them."""
