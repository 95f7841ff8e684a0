"""Problems that the library reasoning-gym makes, as a source: `reasoning_gym:TASK?size=2000&seed=1`.

In: the name of a task and its settings. Out: rows with the question, the library's own answer, and what is
needed to make the same entry again (`entry_of`), which its scorer takes.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from orchestrator.config.sources import PROCEDURAL
from orchestrator.config.texts import parse_yaml
from orchestrator.errors import ConfigError, DataError

EXTRA = "pip install 'laser-orchestrator[reasoning-gym]'"


class ProceduralRows:
    """The entries of one task, each made when it is asked for.

    Raises:
        ConfigError: The library is not installed, or has no such task or setting.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.task, self.settings = task_of(path)
        self._entries = entries_of(self.task, json.dumps(self.settings, sort_keys=True))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> dict[str, Any]:
        try:
            entry = self._entries[number]
        except Exception as error:  # a generator is a program and may raise any error
            raise DataError(
                f"{self._path}: the generator fails on problem {number + 1} ({type(error).__name__}: {error})"
            ) from error
        return {
            "problem": str(entry["question"]),
            "answer": entry["answer"],
            "task": self.task,
            "settings": self.settings,
            "index": number,
            "metadata": entry["metadata"],
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))

    def place(self, number: int) -> tuple[str, int]:
        """The task, and the number of the problem."""
        return self._path, number + 1


def task_of(path: str) -> tuple[str, dict[str, Any]]:
    """The task of a source's path, and its settings as values.

    Raises:
        ConfigError: The path is malformed.
    """
    task, _, query = path.removeprefix(PROCEDURAL).partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    names = {name for name, value in pairs if value}
    if not task or len(names) < len(pairs) or (query and not pairs):
        raise ConfigError(f"{path}: write {PROCEDURAL}TASK?size=2000&seed=1, with each setting once")
    settings = {name: parse_yaml(value, f"{path}: {name}") for name, value in pairs}
    return task, {"seed": 0} | settings  # without a seed the library draws one


@lru_cache(maxsize=64)
def entries_of(task: str, settings: str) -> Any:
    """The library's data set of a task.

    Args:
        settings: As JSON.

    Raises:
        ConfigError: The library is not installed, or has no such task or setting.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(f"{PROCEDURAL}{task} needs the library reasoning-gym: {EXTRA}") from error
    if task not in DATASETS:
        near = ", ".join(difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.0))
        raise ConfigError(f"{PROCEDURAL}{task}: reasoning-gym has no such task; nearest: {near}")
    try:
        return reasoning_gym.create_dataset(task, **json.loads(settings))
    except Exception as error:  # each task has its own settings and checks
        raise ConfigError(
            f"{PROCEDURAL}{task}: {settings} is refused ({type(error).__name__}: {error})"
        ) from error


def entry_of(fields: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The data set and the entry from which a row was made.

    Args:
        fields: The row's `task`, `settings` and `index`.
    """
    entries = entries_of(fields["task"], json.dumps(fields["settings"], sort_keys=True))
    return entries, _made(fields["task"], json.dumps(fields["settings"], sort_keys=True), fields["index"])


@lru_cache(maxsize=512)  # the samples of a problem come together
def _made(task: str, settings: str, index: int) -> dict[str, Any]:
    return entries_of(task, settings)[index]
