"""Rows of JSON and CSV files: each is a line of a mapped file and is read when it is asked for.

In: the bytes of a file. Out: `JsonLines`. A JSON array and a CSV file become such lines in a temporary file.
"""

import codecs
import csv
import json
import mmap
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from orchestrator.data.files import mapped
from orchestrator.errors import DataError

_NEWLINE = ord("\n")
_MARK = codecs.BOM_UTF8
_SCAN_BYTES = 2**24


class JsonNumber(str):
    """A number as its file writes it: Python's own would be rounded or overflow."""

    def value(self) -> int | float | str:
        """The number; a text where Python has no such number."""
        try:
            return int(self)
        except ValueError:
            number = float(self)
            return number if np.isfinite(number) else str(self)


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


# NaN and Infinity are no JSON and become floats, which no field may be.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=JsonNumber, parse_float=JsonNumber, parse_constant=float
)


class JsonLines:
    """JSON values, one a line of a mapped file.

    Args:
        place: The file, for messages.
        content: Its bytes.
        lines: The line of each row in the user's own file, where that is another one than `content`.
    """

    def __init__(
        self, place: str, content: "mmap.mmap | bytes", lines: "Int64[np.ndarray, rows] | None" = None
    ) -> None:
        self._place = place
        self._content = content
        self._starts, self._ends, self._lines = _line_spans(content)
        if lines is not None:
            self._lines = lines

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Any:
        start, line = int(self._starts[number]), int(self._lines[number])
        try:
            text = self._content[start : self._ends[number]].decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._place}, line {line}: is not UTF-8 text (at byte {start + error.start}); convert it "
                "to UTF-8"
            ) from error
        return parse_json(text, f"{self._place}, line {line}")

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def place(self, number: int) -> tuple[str, int]:
        """The file and line of a row."""
        return self._place, int(self._lines[number])


def parse_json(text: str, where: str) -> Any:
    """A JSON value, with its numbers as `JsonNumber`.

    Args:
        where: File and line, for the message.

    Raises:
        DataError: It is none.
    """
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


def is_array(content: "mmap.mmap | bytes") -> bool:
    """Whether the content of a file begins a JSON array."""
    return content[:_SCAN_BYTES].removeprefix(_MARK).lstrip().startswith(b"[")


def _line_spans(
    content: "mmap.mmap | bytes",
) -> "tuple[Int64[np.ndarray, rows], Int64[np.ndarray, rows], Int64[np.ndarray, rows]]":
    """Start, end and number, from 1, of each line that is not blank."""
    data = np.frombuffer(content, np.uint8) if len(content) else np.empty(0, np.uint8)
    blocks = range(0, len(data), _SCAN_BYTES)
    found = [np.flatnonzero(data[start : start + _SCAN_BYTES] == _NEWLINE) + start for start in blocks]
    ends = np.concatenate([*found, [len(data)]]).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if content[: len(_MARK)] == _MARK:
        starts[0] = len(_MARK)
    kept = ends > starts
    for number in np.flatnonzero(kept)[data[starts[kept]] <= ord(" ")]:  # it may be blank
        kept[number] = not content[starts[number] : ends[number]].isspace()
    return starts[kept], ends[kept], np.flatnonzero(kept) + 1


def array_rows(file: Path, content: "mmap.mmap | bytes") -> JsonLines:
    """The values of a JSON array, as the lines of a temporary file.

    Raises:
        DataError: It is no JSON array, or no UTF-8 text.
    """
    try:
        text = content[:].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: is not UTF-8 text (at byte {error.start}); convert it to UTF-8"
        ) from error
    with tempfile.TemporaryFile() as lines:
        count = 0
        for value in _values_of_array(text, str(file)):
            lines.write(value.replace("\n", " ").encode() + b"\n")  # none is within a JSON text
            count += 1
        lines.flush()
        return JsonLines(str(file), mapped(lines), np.arange(1, count + 1))


def _values_of_array(text: str, where: str) -> Iterator[str]:
    """The text of each value of a JSON array. Raises as `parse_json`."""
    end = _after_space(text, text.index("[") + 1)
    is_first = True
    while not (is_first and text[end] == "]"):
        try:
            start = end if is_first else _after_space(text, end + 1)
            _, end = _DECODER.raw_decode(text, start)
            yield text[start:end]
            end, is_first = _after_space(text, end), False
            if text[end] == "]":
                break
            if text[end] != ",":
                raise ValueError(text[end])
        except (ValueError, IndexError, RecursionError):
            parse_json(text, where)  # says what is wrong, and where
            raise
    if text[end + 1 :].strip():
        parse_json(text, where)


def _after_space(text: str, start: int) -> int:
    while text[start : start + 1] in (" ", "\n", "\r", "\t") and start < len(text):
        start += 1
    return start


def csv_rows(file: Path, content: "mmap.mmap | bytes") -> JsonLines:
    """The rows of a CSV file with a header, as the lines of a temporary file.

    Raises:
        DataError: It is no CSV, or no UTF-8 text.
    """
    csv.field_size_limit(2**31 - 1)
    spans = np.flatnonzero(np.frombuffer(content or b"\n", np.uint8) == _NEWLINE).tolist()
    edges = [0, *(end + 1 for end in spans), len(content)]
    texts = (content[start:end].removeprefix(_MARK).decode() for start, end in pairwise(edges) if end > start)
    reader = csv.reader(texts, strict=True)
    numbers: list[int] = []
    with tempfile.TemporaryFile() as lines:
        try:
            header = next(reader, [])
            first = reader.line_num + 1
            for row in reader:
                if row and len(row) != len(header):
                    raise DataError(
                        f"{file}, line {first}: has {len(row)} fields, but the header names {len(header)}; "
                        "correct the line"
                    )
                if row:
                    lines.write(json.dumps(dict(zip(header, row, strict=True))).encode() + b"\n")
                    numbers.append(first)
                first = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}, line {reader.line_num + 1}: is not CSV in UTF-8 with a header ({error})"
            ) from error
        lines.flush()
        return JsonLines(str(file), mapped(lines), np.array(numbers, np.int64))
