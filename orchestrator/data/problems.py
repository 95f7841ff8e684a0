"""Reads problems from data.

In: a .jsonl, .json or .parquet file, or a Hugging Face data set. Out: rows (`data_rows`), or `Problem`s with
    a reference answer (`load_problems`).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError

Row = dict[str, Any]

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Problem:
    """A problem whose solutions can be verified."""

    id: str
    text: str
    answer: str
    kind: str | None
    """A group of problems that is reported separately; None where the row names none."""
    source: int
    """The line (JSON lines) or row, counted from 1."""
    file: str = "the data"
    """The file or data set."""
    field: str = "problem"
    """The field that holds the text."""

    @property
    def where(self) -> str:
        """File, line and field of the text, for messages."""
        return f"{self.file}, line {self.source}: '{self.field}'"


def load_problems(
    path: str, problem_field: str, answer_field: str, split: str = "train", kind_field: str = "kind"
) -> list[Problem]:
    """The problems of a file or of a Hugging Face data set (a folder, `name` or `name:config`).

    A problem's id is the row's `id` field or, without one, a hash of problem and answer. A repeated id gets
    the line appended. A list of answers is joined by commas.

    Args:
        split: The split of a data set; a file has no splits.

    Raises:
        DataError: The data cannot be read, a row lacks a field, or there is no row.
    """
    problems = []
    seen: set[str] = set()
    for source, row in data_rows(path, split):
        where = f"{path}, line {source}"
        text = field_text(row, problem_field, "data.problem_field", where)
        answers = row.get(answer_field)
        if isinstance(answers, list) and answers and all(isinstance(part, str) for part in answers):
            row = {**row, answer_field: ", ".join(part.strip() for part in answers)}
        answer = field_text(row, answer_field, "data.answer_field", where)
        id_ = row.get("id")
        if id_ is None or id_ == "":
            id_ = hashlib.sha256(f"{text}\0{answer}".encode(errors="surrogatepass")).hexdigest()[:16]
        kind = row.get(kind_field)
        kind = None if kind is None else str(kind)
        problem = Problem(str(id_), text, answer, kind, source, path, problem_field)
        if problem.id in seen:
            problem = replace(problem, id=f"{problem.id}-{source}")
        seen.add(problem.id)
        problems.append(problem)
    if not problems:
        raise DataError(f"{path}: holds no problem")
    return problems


def data_rows(path: str, split: str) -> Iterator[tuple[int, Row]]:
    """The rows of the file or data set at `path`, each with its line or row number, counted from 1.

    Raises:
        DataError: The data cannot be read, or a row is not an object with fields.
    """
    for number, row in _rows(path, split):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: is {type(row).__name__}, not an object with fields; "
                "write one JSON object a line"
            )
        yield number, row


def field_text(row: Row, field: str, key: str, where: str) -> str:
    """The field's text without outer space; a number becomes text.

    Args:
        key: The setting that names the field, for messages.
        where: The file and line, for messages.

    Raises:
        DataError: The field is missing, empty, or neither text nor a number.
    """
    if field not in row:
        raise DataError(
            f"{where}: no field '{field}'; its fields are {', '.join(map(repr, row)) or 'none'}: "
            f"set {key} to one of them"
        )
    value = row[field]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: '{field}' is {value!r}, neither text nor a number; correct the line, "
            f"or set {key} to another field"
        )
    if not value.strip():
        raise DataError(f"{where}: '{field}' is empty; complete the line or remove it")
    return value.strip()


def _rows(path: str, split: str) -> Iterator[tuple[int, Any]]:
    file = Path(path)
    if file.suffix not in FILE_SUFFIXES:
        if file.is_file():
            raise DataError(
                f"{path}: '{file.suffix}' files are not supported; convert it to .jsonl, .json or .parquet"
            )
        return enumerate(_data_set(path, split), 1)
    if not file.is_file():
        raise DataError(f"{path}: no such file (looked in {file.parent.resolve()})")
    if file.suffix == ".parquet":
        return enumerate(_parquet_rows(file), 1)
    return _json_rows(file)


def _json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Rows of JSON lines or of one JSON array; either may have any name."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text (at byte {error.start}); convert it to UTF-8") from error
    if content.lstrip().startswith("["):
        yield from enumerate(_json(content, str(file)), 1)
        return
    # splitlines() would also split at separators that a JSON text may contain, such as U+2028.
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, _json(line, f"{file}, line {number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        position = (
            f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        )
        raise DataError(
            f"{where}: is not JSON ({error.msg} at {position}); write one JSON object a line, or one array"
        ) from error


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
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
