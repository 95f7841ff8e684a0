"""Settings of the service: `ServeConfig` for `laser serve`, and its two parts, which a file for `serve deploy` gives one by one.

Imports neither torch nor Ray.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.config.schema import (
    Gpus,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    Text,
    refuse_parts_of_gpus,
    validate,
    with_overrides,
)
from orchestrator.errors import ConfigError

Seconds = PositiveFloat
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class ServedEngine(Section):
    """An engine replica: a vLLM engine with the model's tokenizer."""

    replicas: PositiveInt = 1
    """Engine replicas of each model."""
    max_replicas: PositiveInt | None = None
    """Ray Serve adds replicas up to this many under load; null keeps `replicas`."""
    max_prompt_tokens: PositiveInt | None = None
    """Longer prompts are refused; null takes a quarter of the model's positions, at most 2048."""
    max_response_tokens: PositiveInt | None = None
    """A response ends there, unfinished; null takes the rest of the model's positions, at most 8192."""
    max_ongoing: PositiveInt = 32
    """Requests a replica works on at a time. A request may hold several samples or items."""
    tensor_parallel: PositiveInt = 1
    """GPUs (or CPU processes) that share one engine's weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the engine; `auto` is that of the model's folder."""
    kv_cache_gib: PositiveFloat | None = None
    """KV-cache of an engine in GiB. On CPU 0.5 unless set; on GPU vLLM's own share of the memory."""
    cpus: Share = 1.0
    """CPUs a replica reserves; fractions share a CPU. While new weights roll out, old and new replicas need room together."""
    gpus: Gpus = 0.0
    """GPUs a tensor-parallel rank reserves; 0 runs the engine on CPU."""
    engine_args: dict[str, Any] = Field(default={})
    """Passed through to vLLM's EngineArgs."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> "ServedEngine":
        refuse_parts_of_gpus("engine.gpus", self.gpus, self.tensor_parallel)
        return self


class Limits(Section):
    """What one request may ask for, and how many may wait."""

    body_mib: PositiveFloat = 4.0
    """Larger request bodies are refused (413)."""
    choices: PositiveInt = 16
    """`n` of a chat completion."""
    samples: PositiveInt = 64
    """Solutions drawn for one vote or adaptive sampling."""
    items: PositiveInt = 64
    """Solutions scored in one request."""
    queued: PositiveInt = 64
    """Requests that wait for a replica with room, for each model and in each ingress replica; the next one is answered 429."""
    retry_after_s: PositiveInt = 1
    """`Retry-After` of a 429 or 503."""
    deadline_s: Seconds = 300.0
    """A request that has not been answered by then is given up (504)."""
    drain_s: Seconds = 30.0
    """How long requests in flight may go on when the service, or a replaced replica, stops."""


class IngressConfig(Section):
    """Arguments of the application `orchestrator.serving.app:ingress`."""

    models: list[Name]
    """Names of the served models; each is an application of its own (`orchestrator.serving.app:engine`)."""
    keys_file: Path | None = None
    """API keys, one a line, read when an ingress replica starts; LASER_API_KEY holds a key too."""
    key_hashes: list[str] = Field(default=[])
    """SHA-256 of further keys, in hex."""
    open: bool = False
    """Answer without a key. Only for an address that nobody else reaches."""
    replicas: PositiveInt = 1
    """Ingress replicas; they need little, and the limits count in each."""
    cpus: Share = 0.1
    """CPUs an ingress replica reserves."""
    limits: Limits = Limits()


class ReplicaConfig(Section):
    """Arguments of the application `orchestrator.serving.app:engine`, one a model."""

    name: Name
    """What clients call the model; the application must have this name too."""
    model: Text
    """A Hugging Face folder or name, a run, a checkpoint or `models:/NAME/VERSION`, read on the replica's node."""
    engine: ServedEngine = ServedEngine()
    limits: Limits = Limits()


class ServeConfig(Section):
    """Settings of `laser serve`."""

    models: Annotated[dict[Name, Text], Field(min_length=1)]
    """Models by the name that clients call them: folders, runs, checkpoints, hub names or `models:/NAME@ALIAS`."""
    host: Text = "127.0.0.1"
    """Address to listen on. Any but a loopback address needs an API key."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    keys_file: Path | None = None
    """API keys, one a line; LASER_API_KEY holds a key too."""
    follow: bool = False
    """Serve new weights as they appear: a run's newest export, or what a registry alias names."""
    follow_every_s: Seconds = 10.0
    """How often to look for new weights."""
    ingress_replicas: PositiveInt = 1
    """Ingress replicas; they need little, and the limits count in each."""
    ingress_cpus: Share = 0.1
    """CPUs an ingress replica reserves."""
    engine: ServedEngine = ServedEngine()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _own_names(self) -> "ServeConfig":
        if INGRESS in self.models:
            raise ValueError(f"models: {INGRESS!r} is the name of the ingress; give the model another one")
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def replica(self, name: str, model: str) -> ReplicaConfig:
        """The part of one model, whose weights `model` names for good."""
        return ReplicaConfig(name=name, model=model, engine=self.engine, limits=self.limits)


INGRESS = "laser-ingress"
"""Name of the ingress's application."""


def serve_config(models: Sequence[str], settings: Mapping[str, Any], overrides: Sequence[str]) -> ServeConfig:
    """The settings of a command line: `models` as `MODEL` or `NAME=MODEL`, `overrides` as `apply_overrides` reads them.

    Raises:
        ConfigError: A model has no name of its own, or a key or value is refused.
    """
    named: dict[str, str] = {}
    for model in models:
        name, separator, path = model.partition("=")
        name, path = (name, path) if separator else (_name(model), model)
        if name in named:
            raise ConfigError(
                f"--model {model}: there is another model {name!r} already; write --model OTHERNAME={path}"
            )
        named[name] = path
    config = validate({"models": named, **settings}, ServeConfig, "laser serve")
    return with_overrides(config, overrides, "laser serve")


def _name(model: str) -> str:
    """What a model is called unless it is told: the last part of its path that says something."""
    registered = re.match(r"models:/([^/@]+)", model)
    parts = [part for part in Path(model).parts if part not in ("export", "..", "/")]
    return (
        registered[1]
        if registered
        else re.sub(r"[^A-Za-z0-9._-]", "-", parts[-1] if parts else "model").lstrip(".-_") or "model"
    )
