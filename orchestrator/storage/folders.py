"""Which command a folder of results belongs to, told from the files in it."""

import json
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import ConfigError

RESULTS = "results.json"
"""Written by `laser sweep` and by `laser eval`, each with keys of its own."""


def results_of(folder: Path) -> tuple[Literal["sweep", "evaluation"], dict[str, Any]] | None:
    """The results in `folder`, with the kind of command that wrote them; None where neither of the two did.

    Raises:
        ConfigError: Its results.json is no JSON, or cannot be read.
    """
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}). The sweep or evaluation that wrote it writes it again when it continues"
        ) from error
    if not isinstance(tree, dict):
        return None
    if "trials" in tree:
        return "sweep", tree
    return ("evaluation", tree) if "sets" in tree else None
