"""The verifier of a run that resumes: its own, unless the new settings name one.

The default verifier may change from one version to the next; a run must not change its reward half-way.
"""

from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.evaluation import EvalConfig
from orchestrator.config.schema import Section
from orchestrator.config.training import RunConfig


def saved_settings(folder: Path) -> bytes | None:
    """YAML of the settings of the run that a folder holds; None where it holds none that could resume."""
    path = folder / "config.yaml"
    if not path.exists() or not any((folder / kept).exists() for kept in ("checkpoints", "export")):
        return None
    return path.read_bytes()


def with_kept_verifier(config: RunConfig, saved: str | bytes | None) -> RunConfig:
    """The settings with the verifier of the saved ones, where `config` names none.

    Args:
        saved: YAML of the run's settings; None for a run that is new.
    """
    if saved is None or names_verifier(config):
        return config
    try:
        tree = yaml.safe_load(saved)
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
    ):  # the comparison of settings tells what is wrong with the file
        return config
    verification = tree.get("verification") if isinstance(tree, dict) else None
    kept = verification.get("verifier") if isinstance(verification, dict) else None
    if not isinstance(kept, str | dict):
        return config
    return config.model_copy(
        update={"verification": config.verification.model_copy(update={"verifier": kept})}
    )


def names_verifier(config: RunConfig | EvalConfig) -> bool:
    """Whether the settings name a verifier, rather than take the default."""
    return "verification" in config.model_fields_set and "verifier" in config.verification.model_fields_set


def dump_named(config: Section) -> str:
    """All settings as YAML, without a verifier that the settings do not name."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    if isinstance(config, RunConfig | EvalConfig) and not names_verifier(config):
        del tree["verification"]["verifier"]
    return yaml.safe_dump(tree, sort_keys=False)
