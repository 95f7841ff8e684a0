"""Reads problems from data.

In: a .jsonl, .json or .parquet file, or a Hugging Face data set. Out: rows (`data_rows`), or `Problem`s with
    a reference answer (`load_problems`).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.data.texts import Row, answer_text, check_text, field_text, shown
from orchestrator.errors import DataError
from orchestrator.messages.problems import Problem

Read = TypeVar("Read")

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
SHOWN_LINES = 10
"""A message names so many of the lines that are refused."""


def load_problems(
    path: str, problem_field: str, answer_field: str, split: str = "train", kind_field: str = "kind"
) -> list[Problem]:
    """The problems of a file or of a Hugging Face data set (a folder, `name` or `name:config`).

    A problem's id is the row's `id` field or, without one, a hash of problem and answer. A repeated id gets
    the line appended. A list of answers is joined by commas. Numbers are read as the file writes them.

    Args:
        split: The split of a data set; a file has no splits.

    Raises:
        DataError: The data cannot be read, there is no row, or a row lacks a field or has a wrong value. The
            message names the first such row and counts the others.
    """

    def problem_of(row: Row, source: int, where: str) -> Problem:
        text = field_text(row, problem_field, "data.problem_field", where)
        answer = answer_text(row, answer_field, "data.answer_field", where)
        id_ = _label(row, "id", where)
        if not id_:
            id_ = hashlib.sha256(f"{text}\0{answer}".encode()).hexdigest()[:16]
        kind = _label(row, kind_field, where)
        place = {"line": source, "file": path, "field": problem_field}
        return Problem.from_text(id_, text, answer, kind=kind, **place)

    problems = []
    seen: set[str] = set()
    for problem in read_rows(path, split, problem_of):
        if problem.id in seen:
            problem = replace(problem, id=f"{problem.id}-{problem.line}")
        seen.add(problem.id)
        problems.append(problem)
    if not problems:
        raise DataError(f"{path}: holds no problem")
    return problems


def _label(row: Row, field: str, where: str) -> str | None:
    """An id or a kind as text."""
    value = row.get(field)
    if value is None:
        return None
    check_text(str(value), f"{where}: '{field}'")
    return str(value)


def read_rows(path: str, split: str, read: Callable[[Row, int, str], Read]) -> Iterator[Read]:
    """What `read` makes of each row, given its number and its place for messages.

    Raises:
        DataError: As `data_rows`, or at the end for the first row that `read` refused. The message counts the
            others, so that a user can correct them together.
    """
    first: DataError | None = None
    others: list[int] = []
    for number, row in data_rows(path, split):
        try:
            item = read(row, number, f"{path}, line {number}")
        except DataError as error:
            if first is None:
                first = error
            else:
                others.append(number)
        else:
            if first is None:
                yield item
    if first is not None and others:
        lines = ", ".join(map(str, others[:SHOWN_LINES])) + (", ..." if others[SHOWN_LINES:] else "")
        raise DataError(f"{first}. {len(others)} more lines are refused: {lines}") from first
    if first is not None:
        raise first


def data_rows(path: str, split: str) -> Iterator[tuple[int, Row]]:
    """The rows of the file or data set at `path`, each with its line or row number, counted from 1.

    Numbers of JSON are texts, as the file writes them: Python's would be rounded or overflow.

    Raises:
        DataError: The data cannot be read, or a row is not an object with fields.
    """
    for number, row in _rows(path, split):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: is {shown(row)}, not an object with fields; "
                "write one JSON object a line"
            )
        yield number, row


def _rows(path: str, split: str) -> Iterator[tuple[int, Any]]:
    file = Path(path)
    if file.suffix not in FILE_SUFFIXES:
        if os.path.isfile(path):
            kind = f"'{file.suffix}' files are" if file.suffix else "a data file whose name has no ending is"
            raise DataError(f"{path}: {kind} not supported; convert it to .jsonl, .json or .parquet")
        return enumerate(_data_set(path, split), 1)
    if not os.path.isfile(path):  # unlike Path's method it is False for a path that cannot be
        raise DataError(f"{path}: no such file (looked in {os.path.abspath(file.parent)})")
    if file.suffix == ".parquet":
        return enumerate(_parquet_rows(file), 1)
    return _json_rows(file)


class _RepeatingRow(dict[str, Any]):
    """An object that has a key more than once; the last value counts in JSON."""

    repeated: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        row = _RepeatingRow(row)
        row.repeated = frozenset(key for key in row if keys.count(key) > 1)
    return row


# Texts for numbers, see `data_rows`; NaN and Infinity are no JSON and become floats, which no field may be.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=float)


def _json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Rows of JSON lines or of one JSON array; either may have any name."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        broken = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {broken}: is not UTF-8 text (at byte {error.start}); convert it to UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    if content.lstrip().startswith("["):
        yield from enumerate(_json(content, str(file)), 1)
        return
    # splitlines() would also split at separators that a JSON text may contain, such as U+2028.
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, _json(line, f"{file}, line {number}")


def _json(text: str, where: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        position = (
            f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        )
        cure = "write one JSON object a line, or one array"
        if error.msg.startswith("Invalid \\"):
            cure = "write a backslash as \\\\ in JSON"
        raise DataError(f"{where}: is not JSON ({error.msg} at {position}); {cure}") from error
    except RecursionError as error:
        raise DataError(f"{where}: is nested too deeply for a problem; correct it") from error


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file}: cannot be read as parquet ({error})") from error


def _data_set(path: str, split: str) -> Iterable[Row]:
    import datasets

    folder = Path(path)
    name, _, config = path.partition(":")
    try:
        if (folder / "dataset_dict.json").exists():
            return datasets.load_from_disk(path)[split]
        if (folder / "state.json").exists():
            return datasets.load_from_disk(path)
        if folder.is_dir():
            return datasets.load_dataset(path, split=split)
        return datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the library raises errors of many types, also those of its HTTP client
        raise DataError(
            f"'{path}', split '{split}': is not a file, and cannot be loaded as a Hugging Face data set "
            f"({type(error).__name__}: {error}); check the name and the network, or download it and give the "
            "path"
        ) from error
