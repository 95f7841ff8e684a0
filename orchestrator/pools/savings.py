"""Settings that lower a run's memory, with values: for `laser check`, and after a memory kill.

In: a configuration, the model's size, and which part of the memory plan matters. Out: overrides as the
command line takes them, in the order of what they cost: first speed alone, then precision, then the length
of responses.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.machine import GIB
from orchestrator.config.schema import with_settings
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError, LaserError
from orchestrator.pools.memory import (
    MemoryPlan,
    ModelSize,
    engine_memory,
    model_size,
    plan_memory,
    streamed_copies,
)
from orchestrator.pools.memory_kill import MemoryKill, general_advice

Settings = dict[str, Any]
"""Values by key path."""

SHORTEST_RESPONSE = 256
"""Tokens; no shorter responses are proposed."""
KEPT_SAMPLES = 4
"""Longest samples that a proposed KV cache holds."""


@dataclass(frozen=True)
class Saving:
    """Settings, and the bytes that they save by themselves."""

    settings: Settings
    saved: int

    def __str__(self) -> str:
        return f"{as_overrides(self.settings)} (saves {self.saved / GIB:.1f} GiB)"


def savings(
    config: RunConfig, size: ModelSize, need: Callable[[MemoryPlan], int], worth: int = GIB // 20
) -> list[Saving]:
    """What lowers `need` of the plan by at least `worth` bytes, the cheapest first, one value a key."""
    before = need(plan_memory(config, size))
    found: dict[tuple[str, ...], Saving] = {}
    for settings in _candidates(config, size):
        if changed := _with(config, [settings]):
            saved = before - need(plan_memory(changed, size))
            if saved >= worth:
                found[tuple(settings)] = Saving(settings, saved)
    return list(found.values())


def proposal(
    config: RunConfig, size: ModelSize, fits: Callable[[MemoryPlan], bool]
) -> tuple[Settings, MemoryPlan] | None:
    """Few settings, the cheapest ones, with which the plan `fits`, and that plan; None where none do."""
    chosen: list[Settings] = []
    for settings in _candidates(config, size):
        if _with(config, [*chosen, settings]) is None:
            continue
        chosen.append(settings)
        if _fitting(config, size, chosen, fits):
            break
    for settings in list(chosen):
        fewer = [each for each in chosen if each is not settings]
        if _fitting(config, size, fewer, fits):
            chosen = fewer
    plan = _fitting(config, size, chosen, fits)
    return (_merged(chosen), plan) if plan else None


def kill_advice(config: RunConfig) -> Callable[[MemoryKill], list[str]]:
    """For `translated_failures`: what the plan of a run was, and which settings lower it."""

    def advise(kill: MemoryKill) -> list[str]:
        try:
            size = model_size(config.model.path)
            plan = plan_memory(config, size)
            name, need = _need_of(kill.actor)
            found = savings(config, size, need)
        except (LaserError, OSError, ValueError):  # the model's folder has gone; its own error comes first
            return general_advice(kill)
        planned = f"{name} {need(plan) / GIB:.1f} GiB"
        if name != ALL:
            planned += f", {ALL} {plan.host_total / GIB:.1f} GiB"
        lower = ", ".join(map(str, found)) or "no setting does: use a machine with more memory"
        return [f"planned were: {planned} (laser check)", f"to lower it: {lower}"]

    return advise


ALL = "all pools together"


def _need_of(actor: str) -> tuple[str, Callable[[MemoryPlan], int]]:
    """What the plan says about a kind of actor."""
    if actor.endswith("learner rank") or actor.startswith("learner rank"):
        return "a learner rank", lambda plan: plan.rank.peak
    if actor.endswith("engine") or actor.startswith("engine"):
        return "an engine", lambda plan: plan.engine.peak
    return ALL, lambda plan: plan.host_total


def as_overrides(settings: Mapping[str, Any]) -> str:
    """The settings as arguments of the command line."""
    values = {
        key: str(value).lower() if isinstance(value, bool) else value for key, value in settings.items()
    }
    return " ".join(f"{key}={value}" for key, value in values.items())


def _candidates(config: RunConfig, size: ModelSize) -> Iterator[Settings]:
    learning, rollout = config.learning, config.rollout
    if streamed_copies(config):
        yield {"learning.stream": False}
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    tokens = learning.tokens_per_micro_batch
    while tokens > longest:
        tokens = max(longest, tokens // 2)
        yield {"learning.tokens_per_micro_batch": tokens}
    if not learning.gradient_checkpointing:
        yield {"learning.gradient_checkpointing": True}
    if rollout.sync_chunk_mib > 64:
        yield {"rollout.sync_chunk_mib": 64}
    if not rollout.gpus:
        needed = KEPT_SAMPLES * (longest + 1) * engine_memory(config, size).kv_bytes_per_token
        yield {"rollout.kv_cache_gib": math.ceil(100 * needed / GIB) / 100}
    if rollout.num_engines > 1:
        yield {"rollout.num_engines": 1}
    if config.verification.num_workers > 1:
        yield {"verification.num_workers": 1}
    if learning.num_ranks > 1 and not learning.gpus_per_rank:
        yield {"learning.num_ranks": 1}
    if learning.gpus_per_rank and learning.offload != "all" and not rollout.colocate:
        yield {"learning.offload": "all"}
    if rollout.dtype == "float32" or (rollout.dtype == "auto" and learning.dtype == "float32"):
        yield {"rollout.dtype": "bfloat16"}
    if learning.dtype == "float32":
        yield {"learning.dtype": "bfloat16"}
    response = rollout.max_response_tokens
    while response > SHORTEST_RESPONSE:
        response = max(SHORTEST_RESPONSE, response // 2)
        yield {
            "rollout.max_response_tokens": response,
            "learning.tokens_per_micro_batch": rollout.max_prompt_tokens + response,
        }


def _merged(chosen: Sequence[Settings]) -> Settings:
    return {key: value for settings in chosen for key, value in settings.items()}


def _with(config: RunConfig, chosen: Sequence[Settings]) -> RunConfig | None:
    """The configuration with these settings, the later ones first; None where they do not go together."""
    try:
        return with_settings(config, _merged(chosen))
    except ConfigError:
        return None


def _fitting(
    config: RunConfig, size: ModelSize, chosen: Sequence[Settings], fits: Callable[[MemoryPlan], bool]
) -> MemoryPlan | None:
    """The plan with these settings, where it fits."""
    changed = _with(config, chosen)
    plan = None if changed is None else plan_memory(changed, size)
    return plan if plan is not None and fits(plan) else None
