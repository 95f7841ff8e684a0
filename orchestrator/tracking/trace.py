"""A run's trace, a file of Chrome's trace format that Perfetto opens: which worker did what, and when.

In: spans, as they end, each with the worker that it belongs to. Out: `trace.json`, whole after each span, so
that a killed run leaves a file to read. Nothing but names of rows stays in memory.
"""

import json
import os
from pathlib import Path
from typing import Any

from orchestrator.messages.spans import Span

TRACE_FILE = "trace.json"
POOL_ORDER = ("driver", "rollout", "verification", "learning")
"""Pools from top to bottom."""
BEGIN, END = b"[\n", b"]\n"


class Trace:
    """The file, and the rows that it has.

    A worker is a process of the format and has as many rows as it works on spans at a time. Spans of one row
    follow each other or lie in each other.

    Args:
        path: Continued when it exists, as by a run that resumes.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.path = path
        self.end = _end_of_events(path)
        """Where the next event goes."""
        self.rows: dict[tuple[str, int], list[float]] = {}
        """By worker, when the last span of each of its rows ended."""

    def add(self, pool: str, worker: int, span: Span) -> None:
        """Write a span of a worker that does one thing at a time; it may hold spans that ended before it."""
        self._worker(pool, worker)
        self._write(_event(span, _process(pool, worker), 0))

    def add_concurrent(self, pool: str, worker: int, span: Span) -> None:
        """Write a span of a worker that works on several at a time, in a row that was free meanwhile."""
        rows = self._worker(pool, worker)
        free = [number for number, ended in enumerate(rows) if ended <= span.started]
        if free:
            row = max(free, key=lambda number: rows[number])
        else:
            row = len(rows)
            rows.append(0.0)
        rows[row] = span.ended
        self._write(_event(span, _process(pool, worker), row + 1))

    def _worker(self, pool: str, worker: int) -> list[float]:
        """The rows of a worker, whose name is written when it first appears."""
        key = pool, worker
        if key not in self.rows:
            self.rows[key] = []
            process = _process(pool, worker)
            self._write(_named("process_name", process, name=_title(pool, worker)))
            self._write(_named("process_sort_index", process, sort_index=process))
        return self.rows[key]

    def _write(self, event: dict[str, Any]) -> None:
        """Put an event in place of the array's end, and the end behind it, in one write."""
        comma = b"," if self.end > len(BEGIN) else b""
        line = comma + json.dumps(event, separators=(",", ":")).encode() + b"\n"
        _write_at(self.path, self.end, line + END)
        self.end += len(line)


def _end_of_events(path: Path) -> int:
    """Where the array of a trace file ends, behind its last whole event; begins an empty file."""
    with path.open("r+b") as file:
        start = max(0, file.seek(0, os.SEEK_END) - 2**16)
        file.seek(start)
        last = file.read().rfind(b"}\n")
        end = start + last + len(b"}\n") if last >= 0 else 0
        file.truncate(end)
    begin = b"" if end else BEGIN
    _write_at(path, end, begin + END)
    return end + len(begin)


def _write_at(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(place)
        file.write(data)


def _process(pool: str, worker: int) -> int:
    """The format's process number of a worker."""
    return 10_000 * POOL_ORDER.index(pool) + worker + 1


def _title(pool: str, worker: int) -> str:
    names = {"rollout": "engine", "verification": "verifier", "learning": "rank"}
    return f"{names[pool]} {worker}" if pool in names else pool


def _named(what: str, process: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": 0, "args": arguments}


def _event(span: Span, process: int, row: int) -> dict[str, Any]:
    """A complete event, in microseconds."""
    return {
        "ph": "X",
        "name": span.name,
        "pid": process,
        "tid": row,
        "ts": round(span.started * 1e6),
        "dur": max(0, round(span.ended * 1e6) - round(span.started * 1e6)),
        "args": span.arguments,
    }
