"""What a run reads, as fingerprints: a resumed run refuses other data or another model under the same path.

In: problems, or files. Out: `Sources`, a fingerprint for each setting that names something to read, which
checkpoints hold as JSON; and the differences between two of them, in words.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from orchestrator.errors import ConfigError
from orchestrator.messages.problems import Problem
from orchestrator.storage.checksums import sum_files
from orchestrator.storage.files import read_record, write_atomically

SOURCES = "sources.json"

_MOST_BLOCKS = 256
"""A fingerprint of rows holds at most so many digests; with more rows each covers several rows."""
_MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken"}


@dataclass(frozen=True)
class RowsPrint:
    """Fingerprint of the rows of one source. Neither the file's place nor its format counts."""

    place: str
    rows: int
    block: int
    """Rows that each digest covers."""
    digests: list[str]
    fields: str = ""
    """Digest of the other fields of all rows; empty in a fingerprint of an earlier version."""

    def change(self, now: "RowsPrint | FilesPrint") -> str | None:
        """How rows that are read now differ from these, in words; None if they are the same."""
        if not isinstance(now, RowsPrint):
            return f"{self.rows:,} rows before, files now"
        if (self.rows, self.digests) == (now.rows, now.digests):
            same_fields = self.fields == now.fields or not self.fields or not now.fields
            return None if same_fields else "problems and answers are the same, but other fields differ"
        counts = f"{self.rows:,} rows before, {now.rows:,} now"
        if self.block != now.block:
            return counts
        pairs = enumerate(zip(self.digests, now.digests, strict=False))
        first = next((number for number, (old, new) in pairs if old != new), None)
        if first is None:
            return f"{counts}; the rows of both are the same"
        start, end = first * self.block + 1, min((first + 1) * self.block, self.rows, now.rows)
        where = f"row {start:,}" if start >= end else f"one of the rows {start:,} to {end:,}"
        return f"{counts}; the first that differs is {where}"


@dataclass(frozen=True)
class FilesPrint:
    """Fingerprint of the files of one source, such as a model's folder."""

    place: str
    files: dict[str, str]
    """Digest by the file's name."""

    def change(self, now: "RowsPrint | FilesPrint") -> str | None:
        """How files that are read now differ from these, in words; None if they are the same."""
        if not isinstance(now, FilesPrint):
            return f"files before, {now.rows:,} rows now"
        names = sorted(self.files.keys() | now.files.keys())
        found = []
        for name in names:
            if self.files.get(name) != now.files.get(name):
                how = "is new" if name not in self.files else "differs" if name in now.files else "is gone"
                found.append(f"{name} {how}")
        return ", ".join(found) or None


Sources = dict[str, RowsPrint | FilesPrint]
"""By the setting that names the source, such as `data.train`."""


class RowsDigest:
    """Makes the fingerprint of problems that are given one by one, in their order.

    Args:
        place: The file or data set.
        rows: How many problems there will be.
    """

    def __init__(self, place: str, rows: int) -> None:
        self._place, self._rows = place, rows
        self._block = -(-rows // _MOST_BLOCKS) or 1
        self._digests: list[str] = []
        self._digest = xxhash.xxh3_64()
        self._fields = xxhash.xxh3_64()
        self._count = 0

    def add(self, problem: Problem) -> None:
        """Take the next problem."""
        text = problem.text if len(problem.messages) == 1 else json.dumps(problem.messages)
        for part in (problem.id, text, problem.reference or "", problem.kind or ""):
            content = part.encode(errors="surrogatepass")
            self._digest.update(b"%d %b" % (len(content), content))
        if problem.fields:
            self._fields.update(json.dumps(problem.fields, sort_keys=True).encode())
        self._count += 1
        if self._count % self._block == 0 or self._count == self._rows:
            self._digests.append(self._digest.hexdigest())
            self._digest.reset()

    def result(self) -> RowsPrint:
        """The fingerprint of all of them."""
        return RowsPrint(self._place, self._rows, self._block, self._digests, self._fields.hexdigest())


def rows_print(place: str, problems: Sequence[Problem]) -> RowsPrint:
    """The fingerprint of problems in their order."""
    digest = RowsDigest(place, len(problems))
    for problem in problems:
        digest.add(problem)
    return digest.result()


def files_print(place: str, folder: Path, names: Iterable[str]) -> FilesPrint:
    """The fingerprint of these files of a folder, which reads all of them."""
    return FilesPrint(place, {name: found.digest for name, found in sum_files(folder, sorted(names)).items()})


def model_print(model_path: str) -> FilesPrint:
    """The fingerprint of a model: of all its files in a folder, or of a hub name's version in the cache."""
    folder = Path(model_path)
    if folder.is_dir():
        names = [path.name for path in folder.iterdir() if path.is_file() and path.suffix in _MODEL_SUFFIXES]
        return files_print(model_path, folder, names)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model_path, "config.json")
    # A version's files lie in snapshots/<commit>/.
    return FilesPrint(model_path, {"version": Path(cached).parent.name} if isinstance(cached, str) else {})


def to_tree(sources: Sources) -> dict[str, Any]:
    """The fingerprints for JSON."""
    return {key: asdict(source) for key, source in sources.items()}


def from_tree(tree: dict[str, Any]) -> Sources:
    """The fingerprints of `to_tree`.

    Raises:
        TypeError: It holds something else.
    """
    return {key: (RowsPrint if "rows" in value else FilesPrint)(**value) for key, value in tree.items()}


def changed_sources(before: Sources, now: Sources) -> dict[str, str]:
    """What differs, in words, by setting. A source that only one of them has is a change of the settings."""
    changes = {}
    for key, source in before.items():
        other = now.get(key)
        if other is not None and (change := source.change(other)) is not None:
            changes[key] = f"{other.place}: {change}"
    return changes


def refuse_changed_sources(place: str, before: Sources, now: Sources) -> None:
    """Refuse to continue what was begun with other data or another model under the same paths.

    Args:
        place: What is continued, for the message.

    Raises:
        ConfigError: A source differs; the message says which, and how.
    """
    changes = changed_sources(before, now)
    if changes:
        lines = "\n  ".join(f"{key}: {change}" for key, change in changes.items())
        raise ConfigError(
            f"{place} was begun with other data or another model under the same path:\n  {lines}\n"
            "Put back what it was begun with, or choose another name to start anew."
        )


def write_sources(folder: Path, sources: Sources) -> None:
    """Write what a run or a sweep reads into its folder."""
    write_atomically(folder / SOURCES, json.dumps(to_tree(sources), indent=2) + "\n")


def saved_sources(folder: Path) -> Sources | None:
    """What `write_sources` wrote; None in a folder of an earlier version.

    Raises:
        ConfigError: The file is damaged.
    """
    path = folder / SOURCES
    if not path.exists():
        return None
    advice = "Delete it to continue without the comparison of data and model"
    tree = read_record(path, dict, advice)
    try:
        return from_tree(tree)
    except TypeError as error:
        raise ConfigError(f"{path}: is damaged ({error}). {advice}") from error
