"""Rows of data files and data sets, which stay on disk until they are asked for.

In: a path or a name of the Hugging Face hub. Out: `Rows`: each row by its number, and its place for messages.
JSON lines are found by their offsets in a mapped file, JSON arrays and CSV become such lines, and parquet and
data sets are mapped Arrow tables.
"""

import bisect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from orchestrator.config.sources import COMPRESSIONS, PROCEDURAL
from orchestrator.data.files import (
    data_files,
    has_data_suffix,
    is_hub_folder,
    is_pattern,
    open_bytes,
    refuse_other_file,
)
from orchestrator.data.json_rows import JsonLines, array_rows, csv_rows, is_array
from orchestrator.data.procedural import ProceduralRows
from orchestrator.data.texts import Row, shown
from orchestrator.errors import DataError

Read = TypeVar("Read")

SHOWN_LINES = 10
"""A message names so many of the lines that are refused."""
BATCH_ROWS = 1000
"""Rows of a table that are made into Python's values at a time."""


class Rows(Protocol):
    """The rows of one source, by their number from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any:
        """A row, which should be an object with fields.

        Raises:
            DataError: It cannot be read.
        """

    def __iter__(self) -> Iterator[Any]:
        """All rows in order. Raises as `__getitem__`."""

    def place(self, number: int) -> tuple[str, int]:
        """The file or data set of a row, and its line or row there, counted from 1."""


class TableRows:
    """The rows of a mapped Arrow table.

    Args:
        place: The file or data set, for messages.
    """

    def __init__(self, place: str, table: Any) -> None:
        self._place = place
        self._batches = table.to_batches()
        self._ends: Sequence[int] = np.cumsum([batch.num_rows for batch in self._batches]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        index = bisect.bisect_right(self._ends, number)
        batch = self._batches[index]
        offset = number - (self._ends[index] - batch.num_rows)
        return self._values(batch.slice(offset, 1))[0]

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield from self._values(batch.slice(start, BATCH_ROWS))

    def place(self, number: int) -> tuple[str, int]:
        """The file or data set, and the row."""
        return self._place, number + 1

    def _values(self, batch: Any) -> list[Any]:
        import pyarrow

        try:
            return batch.to_pylist()
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{self._place}: cannot be read as parquet ({error})") from error


class ChainedRows:
    """The rows of several files, one file after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends: list[int] = np.cumsum([len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Any:
        part, offset = self._find(number)
        return part[offset]

    def __iter__(self) -> Iterator[Any]:
        for part in self._parts:
            yield from part

    def place(self, number: int) -> tuple[str, int]:
        """The file of a row, and its line there."""
        part, offset = self._find(number)
        return part.place(offset)

    def _find(self, number: int) -> tuple[Rows, int]:
        index = bisect.bisect_right(self._ends, number)
        return self._parts[index], number - (self._ends[index - 1] if index else 0)


def open_rows(path: str, split: str = "train", revision: str | None = None) -> Rows:
    """The rows of a file, folder or pattern, of a Hugging Face data set (a folder, `name`, `name:config`), or
    of a task of reasoning-gym.

    Args:
        split: The split of a data set or folder; a file has no splits.
        revision: Commit, tag or branch of a name on the hub.

    Raises:
        DataError: The data cannot be read.
    """
    if path.startswith(PROCEDURAL):
        return ProceduralRows(path)
    folder = Path(path)
    is_files = has_data_suffix(path) or is_pattern(path)
    if is_files or (folder.is_dir() and not is_hub_folder(folder)):
        parts = [_open_file(file) for file in data_files(path, split)]
        return parts[0] if len(parts) == 1 else ChainedRows(parts)
    refuse_other_file(path)
    return TableRows(path, _data_set(path, split, revision))


def row_of(rows: Rows, number: int) -> Row:
    """A row as an object with fields.

    Raises:
        DataError: It cannot be read, or is something else.
    """
    return _checked(rows, number, rows[number])


def iterate(rows: Rows) -> Iterator[tuple[int, Row]]:
    """The rows as objects with fields, each with its number. Raises as `row_of`."""
    for number, row in enumerate(rows):
        yield number, _checked(rows, number, row)


def read_rows(rows: Rows, read: Callable[[Row, int], Read], limit: int | None = None) -> Iterator[Read]:
    """What `read` makes of each row, given its number.

    Args:
        limit: Read only this many rows.

    Raises:
        DataError: As `row_of`, or at the end for the first row that `read` refused. The message counts the
            others, so that a user can correct them together.
    """
    first: DataError | None = None
    others: list[int] = []
    for number, row in islice(iterate(rows), limit):
        try:
            item = read(row, number)
        except DataError as error:
            if first is None:
                first = error
            else:
                others.append(number)
        else:
            if first is None:
                yield item
    if first is not None and others:
        lines = ", ".join(str(rows.place(number)[1]) for number in others[:SHOWN_LINES])
        more = ", ..." if others[SHOWN_LINES:] else ""
        raise DataError(f"{first}. {len(others)} more lines are refused: {lines}{more}") from first
    if first is not None:
        raise first


def _checked(rows: Rows, number: int, row: Any) -> Row:
    if isinstance(row, dict):
        return row
    file, line = rows.place(number)
    raise DataError(
        f"{file}, line {line}: is {shown(row)}, not an object with fields; write one JSON object a line"
    )


def _open_file(file: Path) -> Rows:
    kind = file.with_suffix("").suffix if file.suffix in COMPRESSIONS else file.suffix
    if kind == ".parquet":
        return TableRows(str(file), _parquet_table(file))
    content = open_bytes(file)
    if kind == ".csv":
        return csv_rows(file, content)
    # JSON lines and an array may have either name.
    return array_rows(file, content) if is_array(content) else JsonLines(str(file), content)


def _parquet_table(file: Path) -> Any:
    """The table of a parquet file, mapped from a temporary Arrow file."""
    import pyarrow
    import pyarrow.parquet

    content = open_bytes(file)
    try:
        with (
            pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)) as parquet,
            tempfile.NamedTemporaryFile(suffix=".arrow") as arrow,
        ):
            with pyarrow.ipc.new_file(arrow, parquet.schema_arrow) as writer:
                for batch in parquet.iter_batches():
                    writer.write_batch(batch)
            arrow.flush()
            # The mapped file is gone from the folder and stays readable.
            return pyarrow.ipc.open_file(pyarrow.memory_map(arrow.name)).read_all()
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file}: cannot be read as parquet ({error})") from error


def _data_set(path: str, split: str, revision: str | None) -> Any:
    """The Arrow table of a data set, mapped from the library's cache."""
    import datasets

    folder = Path(path)
    name, _, config = path.partition(":")
    try:
        if (folder / "dataset_dict.json").exists():
            found = datasets.load_from_disk(path)[split]
        elif (folder / "state.json").exists():
            found = datasets.load_from_disk(path)
        elif folder.is_dir():
            found = datasets.load_dataset(path, split=split)
        else:
            found = datasets.load_dataset(name, config or None, split=split, revision=revision)
        return found.flatten_indices().data.table if found._indices is not None else found.data.table
    except Exception as error:  # the library raises errors of many types, also those of its HTTP client
        raise DataError(
            f"'{path}', split '{split}': is not a file, and cannot be loaded as a Hugging Face data set "
            f"({type(error).__name__}: {error}); check the name and the network, or download it and give the "
            "path"
        ) from error
