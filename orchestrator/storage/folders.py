"""Folders of results: whether one can be written, and which command wrote one, by the files in it."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import ConfigError
from orchestrator.storage.files import read_record

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
        tree = json.loads(path.read_bytes())
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


def refuse_unusable_folder(folder: Path, keys: str) -> None:
    """Refuse a folder that cannot be made or written. Makes no folder.

    Args:
        keys: The settings that name it, for the message.

    Raises:
        ConfigError: It lies below a file, its name is too long, or the disk or the user may not write there.
    """
    try:
        existing = folder.absolute()
        while not os.path.lexists(existing):
            existing = existing.parent
        if not existing.is_dir():
            raise NotADirectoryError(f"{existing} is no folder")
        longest = os.pathconf(existing, "PC_NAME_MAX")
        if long := [part for part in folder.parts if len(os.fsencode(part)) > longest]:
            raise OSError(f"the name {long[0][:40]}... has more than {longest} bytes")
        with tempfile.TemporaryFile(dir=existing):
            pass
        folder.exists()  # raises for a path that is too long as a whole
    except (OSError, ValueError) as error:
        raise _unusable(folder, keys, error) from error


def make_folder(folder: Path, keys: str) -> None:
    """Make a folder of results, with its parents, unless it exists.

    Args:
        keys: The settings that name it, for the message.

    Raises:
        ConfigError: It cannot be made, or is not a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _unusable(folder, keys, error) from error


def _unusable(folder: Path, keys: str, error: OSError | ValueError) -> ConfigError:
    shown = str(folder) if len(str(folder)) <= 200 else f"{str(folder)[:200]}..."
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"{shown}: cannot be made or written ({reason}). Choose another {keys}")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise the error of reading a value in the results of `path` as a ConfigError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{path}: is damaged ({type(error).__name__}: {error}). Run the command that wrote it again: "
            "when it resumes, it writes the file"
        ) from error


def branch_of(folder: Path) -> tuple[str, int]:
    """The trunk of a sweep's trial, as a path from the trial's folder, and the step at which it branched.

    Raises:
        ConfigError: `branch.json` is damaged.
    """
    path = folder / "branch.json"
    advice = "Restore it, or delete it to show the trial without its trunk"
    branch = read_record(path, dict, advice)
    trunk, step = branch.get("trunk"), branch.get("step")
    if not isinstance(trunk, str) or not isinstance(step, int):
        raise ConfigError(f"{path}: is damaged and names no trunk and step. {advice}")
    return trunk, step
