"""A small valid training configuration, with changes, for every test that needs a `RunConfig`."""

from typing import Any

from orchestrator.config.schema import validate
from orchestrator.config.training import RunConfig

SMALLEST: dict[str, dict[str, Any]] = {
    "run": {"name": "trial", "steps": 3},
    "model": {"path": "models/base"},
    "data": {"train": "train.jsonl"},
    "self_reward": {"token": "<|z|>"},
}


def settings(**sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The smallest settings, as a YAML file holds them, with the keys of `sections` added or replaced."""
    return {name: SMALLEST.get(name, {}) | sections.get(name, {}) for name in SMALLEST | sections}


def configure(**sections: dict[str, Any]) -> RunConfig:
    """A configuration with these settings, such as `configure(run={"steps": 0}, loss={"alpha": 0.5})`."""
    return validate(settings(**sections), RunConfig, "test")
