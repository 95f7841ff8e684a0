"""The journal of a run: what it measured, on disk before anything goes over a network.

In: events, once each. Out: `metrics.jsonl`, one JSON object a line, append-only; `.mlflow-sent` beside it counts the events that MLflow
has. Readers such as a report use `read_events`. Imports neither MLflow nor torch.
"""

import json
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import RunError
from orchestrator.storage.files import write_atomically

JOURNAL = "metrics.jsonl"
SENT = ".mlflow-sent"
Ending = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, in MLflow's words; KILLED is one that was asked to stop."""

RUN_ID = "mlflow_run_id"

TAIL_BYTES = 2**16
"""Some dozens of the newest steps."""

Event = dict[str, Any]


def read_events(folder: Path) -> list[Event]:
    """The events of a run's journal, oldest first; none without a journal. Also while the run goes on: an unfinished last line is left out.

    Raises:
        RunError: A line other than the last is no event.
    """
    path = folder / JOURNAL
    return [event for event, _ in _parse(path)] if path.exists() else []


def last_step(folder: Path) -> int:
    """The newest training step, from the end of the journal alone: cheap enough to ask every second. 0 while there is none."""
    path = folder / JOURNAL
    if not path.exists():
        return 0
    with path.open("rb") as journal:
        journal.seek(max(0, path.stat().st_size - TAIL_BYTES))
        steps = re.findall(rb'^\{"event": "step", .*?"step": (\d+)', journal.read(), re.MULTILINE)
    return int(steps[-1]) if steps else 0


def saved_run_id(folder: Path) -> str | None:
    """The MLflow run that shows this folder's journal, if one has been created."""
    path = folder / RUN_ID
    return (path.read_text().strip() or None) if path.exists() else None


def forget(folder: Path) -> None:
    """Delete the journal of an earlier attempt, so that the next one is another run, in MLflow too."""
    for name in (RUN_ID, JOURNAL, SENT):
        (folder / name).unlink(missing_ok=True)


class Journal:
    """The journal in `folder`, of which one process may be the writer. Another thread may read it meanwhile.

    Opening drops a last line that a kill has cut off.

    Attributes:
        last_step: The last training step in it; -1 without one.
        evaluations: The (set, step) of the evaluations in it.
        status: The last status in it, if any.

    Raises:
        RunError: A line other than the last is no event, or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self.last_step = -1
        self.evaluations: set[tuple[str, int]] = set()
        self.status: str | None = None
        self._starts: list[int] = []  # of the lines, in bytes
        self._end = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            for event, size in _parse(self.path):
                self._count(event, size)
            os.truncate(self.path, self._end)
        self._sent = min(self._read_sent(), len(self))

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def sent(self) -> int:
        """Number of events that MLflow has, counted from the first one."""
        return self._sent

    def start(self, run_name: str) -> None:
        """The first event. `id` tells this journal from those of other runs of the same name."""
        self._append({"event": "start", "time": _now(), "run_name": run_name, "id": uuid.uuid4().hex})

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._append({"event": "step", "time": _now(), "step": step, "values": _numbers(values)})

    def evaluation(
        self, name: str, step: int, values: Mapping[str, float], table: str | None, figure: str | None
    ) -> None:
        """`table` and `figure` are paths within the folder."""
        event = {"event": "evaluation", "time": _now(), "step": step, "set": name, "values": _numbers(values)}
        self._append(event | {"table": table, "figure": figure})

    def summary(self) -> None:
        """Says that `summary.json` has been written."""
        self._append({"event": "summary", "time": _now()})

    def set_status(self, status: str) -> None:
        self._append({"event": "status", "time": _now(), "status": status})

    def events(self, first: int) -> Iterator[Event]:
        """The events from number `first` on, as many as there are now."""
        count = len(self)
        if first >= count:
            return
        with self.path.open("rb") as file:
            file.seek(self._starts[first])
            for _ in range(first, count):
                yield json.loads(file.readline())

    def mark_sent(self, count: int) -> None:
        """MLflow has the first `count` events."""
        write_atomically(self.folder / SENT, f"{count}\n")
        self._sent = count

    def _append(self, event: Event) -> None:
        line = (json.dumps(event, allow_nan=False) + "\n").encode()
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, self._end)  # half a line in the middle would spoil the next one
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}). Mend that (is the disk full?); the same command continues from the "
                "last checkpoint."
            ) from error
        self._count(event, len(line))

    def _count(self, event: Event, size: int) -> None:
        if event["event"] == "step":
            self.last_step = max(self.last_step, event["step"])
        elif event["event"] == "evaluation":
            self.evaluations.add((event["set"], event["step"]))
        elif event["event"] == "status":
            self.status = event["status"]
        self._starts.append(self._end)
        self._end += size

    def _read_sent(self) -> int:
        """0 also when the file is empty or torn, as after a power cut: whoever delivers looks what the server has."""
        try:
            return int((self.folder / SENT).read_text())
        except (FileNotFoundError, ValueError):
            return 0


def _parse(path: Path) -> Iterator[tuple[Event, int]]:
    """Events and the sizes of their lines in bytes, up to a last line that is not whole."""
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            whole = isinstance(event, dict) and "event" in event and line.endswith(b"\n")
        except ValueError:
            whole = False
        if whole:
            yield event, len(line)
        elif number < len(lines):
            raise RunError(
                f"{path}: line {number} is no event of a journal; delete that line, or move the file away"
            )


def _now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _numbers(values: Mapping[str, float]) -> dict[str, float]:
    """What JSON can hold. NaN says that a step does not define the value: no point of the curve. Infinity is the largest number, as MLflow
    stores it."""
    most = sys.float_info.max
    return {
        key: max(-most, min(most, float(value))) for key, value in values.items() if not math.isnan(value)
    }
