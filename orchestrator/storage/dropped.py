"""The problems that a run has dropped because workers died on them: `dropped.jsonl` in the run's folder.

In and out: rows as `laser eval --data` and `data.train` read them, with what is known of each problem's
deaths.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.storage.files import write_atomically

DROPPED = "dropped.jsonl"
"""The file's name."""


def dropped_problems(folder: Path) -> set[tuple[str, str]]:
    """Source and id of the problems that the run in this folder has dropped.

    Raises:
        ConfigError: The file is damaged.
    """
    path = folder / DROPPED
    if not path.exists():
        return set()
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {(row["source"], row["id"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: is damaged ({error}). Delete it: the run then meets the problems again that it dropped"
        ) from error


def add_dropped(folder: Path, row: Mapping[str, Any]) -> Path:
    """Add a row to the file; returns the file.

    Args:
        row: With `source` and `id`, JSON-ready.
    """
    path = folder / DROPPED
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_atomically(path, before + json.dumps(dict(row), ensure_ascii=False) + "\n")
    return path
