"""What engines are asked for, and the settings that they start with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CPU_KV_CACHE_GIB = 0.5


@dataclass(frozen=True)
class EngineSettings:
    """What an engine needs to know. `z_token` None switches the score off."""

    model_path: str
    eos_tokens: tuple[int, ...]
    z_token: int | None
    max_prompt_tokens: int
    max_response_tokens: int
    dtype: str
    tensor_parallel: int = 1
    threads: int = 1
    kv_cache_gib: float | None = None
    on_gpu: bool = False
    sleeps: bool = False
    """Whether it takes turns on its GPU with others."""
    engine_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupRequest:
    """Sample `num_samples` solutions of one problem; sample i draws from seed `seed + i`."""

    prompt_ids: Sequence[int]
    num_samples: int
    seed: int
    temperature: float = 1.0


@dataclass(frozen=True)
class SampleRequest:
    """Sample one solution. With `stream` its tokens are told of at every decode step, not only at the end."""

    prompt_ids: Sequence[int]
    seed: int
    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stream: bool = False
