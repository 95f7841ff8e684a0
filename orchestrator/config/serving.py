"""Settings of the service: `ServeConfig` for `laser serve`, and its two parts for the file of `serve deploy`.

This module imports neither torch nor Ray.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from orchestrator.config.engine import EosTokens, VllmConfig
from orchestrator.config.paths import LocalPath, PathOrName
from orchestrator.config.schema import (
    ActorCount,
    PositiveFloat,
    PositiveInt,
    RunName,
    Section,
    Share,
    Text,
    validate,
    with_overrides,
)
from orchestrator.errors import ConfigError


class ServedEngine(VllmConfig):
    """An engine replica: a vLLM engine with the model's tokenizer."""

    SECTION = "engine"

    replicas: ActorCount = 1
    """Engine replicas of each model."""
    max_replicas: ActorCount | None = None
    """Ray Serve adds replicas under load, up to this number; null keeps `replicas`."""
    max_prompt_tokens: PositiveInt | None = None
    """Longer prompts are refused; null takes a quarter of the model's positions, at most 2048."""
    max_response_tokens: PositiveInt | None = None
    """Longer responses are cut, unfinished; null takes the rest of the model's positions, at most 8192."""
    max_ongoing: PositiveInt = 32
    """Requests that a replica works on at a time; each may hold several samples or items."""
    eos_tokens: EosTokens = ()
    """Tokens that end a response, as texts or ids; empty takes those of the score's training, else of the
    model's files."""
    cpus: Share = 1.0
    """CPUs that a replica reserves; fractions share a CPU. New weights need room beside the old ones."""


class Limits(Section):
    """Limits of a request, and of the requests that wait."""

    body_mib: PositiveFloat = 4.0
    """Larger request bodies are refused (413)."""
    head_kib: PositiveInt = 64
    """Requests whose line and headers are larger are refused (431)."""
    client_s: PositiveFloat = 60.0
    """Seconds that a client may take to send a whole request (408), or to take more of an answer."""
    choices: PositiveInt = 16
    """The highest `n` of a chat completion."""
    samples: PositiveInt = 64
    """The most solutions that one vote or adaptive sampling draws."""
    items: PositiveInt = 64
    """The most solutions that one request has scored."""
    queued: PositiveInt = 64
    """Requests that may wait for each model in each ingress replica; the next one is answered 429."""
    retry_after_s: PositiveInt = 1
    """`Retry-After` of a 429 or 503, in seconds."""
    deadline_s: PositiveFloat = 300.0
    """Seconds after which a request that is not answered is given up (504)."""
    drain_s: PositiveFloat = 30.0
    """Seconds that requests in flight have left when the service, or a replica that is replaced, stops."""


class IngressConfig(Section):
    """Arguments of the application `orchestrator.serving.app:ingress`."""

    models: list[RunName]
    """Names of the served models; each has its application (`orchestrator.serving.app:engine`)."""
    keys_file: LocalPath | None = None
    """File of API keys, one a line, read when an ingress starts; LASER_API_KEY may hold another key."""
    key_hashes: list[str] = Field(default=[])
    """SHA-256 of further API keys, in hex."""
    open: bool = False
    """Answer without an API key; only for an address that no other machine reaches."""
    replicas: ActorCount = 1
    """Ingress replicas; each needs little, and the limits apply to each."""
    cpus: Share = 0.1
    """CPUs that an ingress replica reserves."""
    limits: Limits = Limits()


class ReplicaConfig(Section):
    """Arguments of the application `orchestrator.serving.app:engine`, which serves one model."""

    name: RunName
    """The model's name for clients, which must be the application's name too."""
    model: PathOrName
    """A folder, run, checkpoint, hub name or `models:/NAME/VERSION`, which the replica's node reads."""
    engine: ServedEngine = ServedEngine()
    limits: Limits = Limits()


class ServeConfig(Section):
    """Settings of `laser serve`."""

    models: Annotated[dict[RunName, PathOrName], Field(min_length=1)]
    """Models by their names for clients: folders, runs, checkpoints, hub names or `models:/NAME@ALIAS`."""
    host: Text = "127.0.0.1"
    """Address to listen on; all but loopback addresses need an API key."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    keys_file: LocalPath | None = None
    """File of API keys, one a line; LASER_API_KEY may hold another key."""
    follow: bool = False
    """Serve new weights as they appear: a run's newest export, or the version that a registry alias names."""
    follow_every_s: PositiveFloat = 10.0
    """Seconds between looks for new weights."""
    ingress_replicas: ActorCount = 1
    """Ingress replicas; each needs little, and the limits apply to each."""
    ingress_cpus: Share = 0.1
    """CPUs that an ingress replica reserves."""
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
        """The settings of one model; `model` must name the same weights whenever a replica starts."""
        return ReplicaConfig(name=name, model=model, engine=self.engine, limits=self.limits)


INGRESS = "laser-ingress"
"""Name of the ingress's application."""


def serve_config(models: Sequence[str], settings: Mapping[str, Any], overrides: Sequence[str]) -> ServeConfig:
    """The settings of a command line.

    Args:
        models: Models as `MODEL` or `NAME=MODEL`.
        settings: Settings by key.
        overrides: Further settings as `apply_overrides` reads them.

    Raises:
        ConfigError: Two models have the same name, or a key or value is refused.
    """
    named: dict[str, str] = {}
    for model in models:
        name, separator, path = model.partition("=")
        # A folder's name may hold a "=" too.
        name, path = (name, path) if separator and "/" not in name else (_name(model), model)
        if name in named:
            raise ConfigError(
                f"--model {model}: there is another model {name!r} already; write --model OTHERNAME={path}"
            )
        named[name] = path
    config = validate({"models": named, **settings}, ServeConfig, "options")
    return with_overrides(config, overrides, "options")


def _name(model: str) -> str:
    """The name of a model that was given without one: the last telling part of its path."""
    if registered := re.match(r"models:/([^/@]+)", model):
        return registered[1]
    parts = [part for part in Path(model).parts if part not in ("export", "..", "/")]
    return re.sub(r"[^A-Za-z0-9._-]", "-", parts[-1] if parts else "").lstrip(".-_") or "model"
