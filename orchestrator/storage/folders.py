"""Which command wrote a folder of results, by the files in it."""

import json
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import ConfigError

RESULTS = "results.json"
"""`laser sweep` and `laser eval` write a file of this name, each with its own keys."""


def results_of(folder: Path) -> tuple[Literal["sweep", "evaluation"], dict[str, Any]] | None:
    """The kind of command that wrote the results in `folder`, and the results; None if neither command did.

    Raises:
        ConfigError: Its results.json cannot be read, or is not JSON.
    """
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}). Run the command that wrote it again: when it resumes, it "
            "writes the file"
        ) from error
    if not isinstance(tree, dict):
        return None
    if "trials" in tree:
        return "sweep", tree
    return ("evaluation", tree) if "sets" in tree else None
