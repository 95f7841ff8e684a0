"""The journal of a run: every measurement is on disk before it goes over a network.

In: events, once each. Out: `metrics.jsonl`, one JSON object a line, append-only; and `.mlflow-sent`, the
number of events that MLflow has. Readers such as the report use `read_events`. This module imports neither
MLflow nor torch.
"""

import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import RunError
from orchestrator.measures import is_point
from orchestrator.shown_text import safe_to_show
from orchestrator.storage.dropped import DROPPED
from orchestrator.storage.files import write_atomically

JOURNAL = "metrics.jsonl"
SENT = ".mlflow-sent"
RUN_ID = "mlflow_run_id"

Ending = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, in MLflow's words. KILLED: a signal or a scheduler asked it to stop."""
RunStatus = Literal["RUNNING", Ending]

TAIL_BYTES = 2**16
"""How much `last_step` reads from the end of a journal: some dozens of steps."""


@dataclass(frozen=True)
class StartEvent:
    """The first event of a journal."""

    time: int
    """Milliseconds since 1970, as in every event."""
    run_name: str
    id: str
    """Distinguishes this journal from those of other runs with the same name."""


@dataclass(frozen=True)
class StepEvent:
    """Metrics of a training step."""

    time: int
    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class EvaluationEvent:
    """Figures of a held-out set after a step; 0 is the initial model."""

    time: int
    step: int
    set: str
    values: dict[str, float]
    table: str | None
    """Path of the sampled solutions, within the run's folder."""
    figure: str | None
    """Path of the plot of score distributions, within the run's folder."""


@dataclass(frozen=True)
class NoteEvent:
    """A warning, such as a damaged checkpoint that was not used, or a step that was skipped."""

    time: int
    step: int
    """The last finished step."""
    text: str


@dataclass(frozen=True)
class SummaryEvent:
    """`summary.json` has been written."""

    time: int


@dataclass(frozen=True)
class StatusEvent:
    """The run ended, or it was resumed."""

    time: int
    status: RunStatus


Event = StartEvent | StepEvent | EvaluationEvent | NoteEvent | SummaryEvent | StatusEvent

_KINDS: dict[str, type[Event]] = {
    "start": StartEvent,
    "step": StepEvent,
    "evaluation": EvaluationEvent,
    "note": NoteEvent,
    "summary": SummaryEvent,
    "status": StatusEvent,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_json(event: Event) -> str:
    """The event as one line of the journal, without the line's end.

    The key `event` names its kind and comes first.
    """
    tree = {"event": _NAMES[type(event)], **vars(event)}
    if "values" in tree:
        tree["values"] = _json_values(tree["values"])
    return json.dumps(tree, allow_nan=False)


def from_json(line: str | bytes) -> Event:
    """The event of a journal's line. Keys that this version does not know are ignored.

    Raises:
        ValueError: The line is not JSON, its kind is unknown, or a key is missing.
    """
    return _event(json.loads(line))


def read_events(folder: Path) -> list[Event]:
    """The events of a run's journal, oldest first; none if there is no journal.

    The run may still be training: an unfinished last line is left out.

    Raises:
        RunError: A line is not an event, and is not the unfinished last one.
    """
    path = folder / JOURNAL
    return [event for event, _ in _parse(path)] if path.exists() else []


def last_step(folder: Path) -> int:
    """The newest training step; 0 before the first one.

    Reads only the journal's end, so it is cheap to call every second.
    """
    path = folder / JOURNAL
    if not path.exists():
        return 0
    with path.open("rb") as journal:
        journal.seek(max(0, path.stat().st_size - TAIL_BYTES))
        steps = re.findall(rb'^\{"event": "step", .*?"step": (\d+)', journal.read(), re.MULTILINE)
    return int(steps[-1]) if steps else 0


def saved_run_id(folder: Path) -> str | None:
    """The MLflow run that shows this folder's journal; None before it is created."""
    path = folder / RUN_ID
    return (path.read_text(errors="replace").strip() or None) if path.exists() else None


def forget(folder: Path) -> None:
    """Delete the records of an earlier attempt, so that the next attempt is a new run, in MLflow too."""
    for name in (RUN_ID, JOURNAL, SENT, DROPPED):
        (folder / name).unlink(missing_ok=True)


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Journal:
    """The journal in `folder`. One process may write it at a time; another thread may read it meanwhile.

    Opening a journal removes a last line that a killed process left unfinished.

    Args:
        folder: The run's folder; it is created if it does not exist.
        clock: The time of each event, in milliseconds since 1970.

    Attributes:
        last_step: The last training step in it; -1 if there is none.
        evaluations: The (set, step) of the evaluations in it.
        status: The last status in it, if any.

    Raises:
        RunError: A line is not an event, or the file cannot be written.
    """

    def __init__(self, folder: Path, clock: Callable[[], int] = now_ms) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self.clock = clock
        self.last_step = -1
        self.evaluations: set[tuple[str, int]] = set()
        self.status: RunStatus | None = None
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

    @property
    def opening(self) -> StartEvent:
        """The first event.

        Raises:
            RunError: The journal is empty or begins with another event.
        """
        first = next(self.events(0), None)
        if not isinstance(first, StartEvent):
            raise RunError(f"{self.path}: does not begin with a start event; restore its first line")
        return first

    def start(self, run_name: str) -> None:
        """Append the first event, with a new `id`."""
        self._append(StartEvent(self.clock(), run_name, uuid.uuid4().hex))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Append a step's metrics, without those that are no point of their curve (`is_point`)."""
        self._append(StepEvent(self.clock(), step, _numbers(values)))

    def evaluation(
        self, name: str, step: int, values: Mapping[str, float], table: str | None, figure: str | None
    ) -> None:
        """Append an evaluation of the set `name`. `table` and `figure` are paths within the folder."""
        self._append(EvaluationEvent(self.clock(), step, name, _numbers(values), table, figure))

    def note(self, step: int, text: str) -> None:
        """Append a warning after step `step`, without secrets."""
        self._append(NoteEvent(self.clock(), step, safe_to_show(text)))

    def summary(self) -> None:
        """Append that `summary.json` has been written."""
        self._append(SummaryEvent(self.clock()))

    def set_status(self, status: RunStatus) -> None:
        """Append the run's new status."""
        self._append(StatusEvent(self.clock(), status))

    def events(self, first: int) -> Iterator[Event]:
        """The events from number `first`, up to the newest one at the time of the call."""
        count = len(self)
        if first >= count:
            return
        with self.path.open("rb") as file:
            file.seek(self._starts[first])
            for _ in range(first, count):
                yield from_json(file.readline())

    def mark_sent(self, count: int) -> None:
        """Record that MLflow has the first `count` events."""
        write_atomically(self.folder / SENT, f"{count}\n")
        self._sent = count

    def _append(self, event: Event) -> None:
        line = (to_json(event) + "\n").encode()
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, self._end)  # half a line would spoil the next one
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}). Is the disk full? Correct the cause, "
                "then run the same command: it resumes from the last checkpoint."
            ) from error
        self._count(event, len(line))

    def _count(self, event: Event, size: int) -> None:
        match event:
            case StepEvent():
                self.last_step = max(self.last_step, event.step)
            case EvaluationEvent():
                self.evaluations.add((event.set, event.step))
            case StatusEvent():
                self.status = event.status
        self._starts.append(self._end)
        self._end += size

    def _read_sent(self) -> int:
        """The saved number, or 0 where a power cut left the file empty or torn.

        A number that is too low is safe: before the delivery sends an event again, it asks the server which
        points it has.
        """
        try:
            return int((self.folder / SENT).read_text())
        except (FileNotFoundError, ValueError):
            return 0


def _event(tree: Any) -> Event:
    kind = _KINDS.get(str(tree.get("event"))) if isinstance(tree, dict) else None
    if kind is None:
        raise ValueError("it is not an event")
    missing = [field.name for field in fields(kind) if field.name not in tree]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    if not isinstance(tree.get("step", 0), int) or not isinstance(tree["time"], int):
        raise ValueError("its step or its time is not a whole number")
    if "values" in tree:
        tree = {**tree, "values": _values(tree["values"])}
    return kind(**{field.name: tree[field.name] for field in fields(kind)})


def _parse(path: Path) -> Iterator[tuple[Event, int]]:
    """Events and the sizes of their lines in bytes, up to a last line that is unfinished."""
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not _is_whole(line):
            return
        try:
            event = from_json(line)
        except ValueError as error:
            raise RunError(
                f"{path}: line {number} is no event of a journal ({error}); delete that line, or rename the "
                "file"
            ) from error
        yield event, len(line)


def _is_whole(line: bytes) -> bool:
    """Whether all of a line reached the disk, also one of a kind that only a later version knows."""
    try:
        return line.endswith(b"\n") and "event" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _numbers(values: Mapping[str, float]) -> dict[str, float]:
    """The values that are points of their curves."""
    return {key: float(value) for key, value in values.items() if is_point(key, value)}


def _json_values(values: Mapping[str, float]) -> dict[str, float | str]:
    """Values for JSON, which has no infinity and no NaN: they are the texts inf, -inf and nan."""
    return {key: value if math.isfinite(value) else str(value) for key, value in values.items()}


def _values(tree: Any) -> dict[str, float]:
    """The values of `_json_values`.

    Raises:
        ValueError: It holds something else.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"its values are {type(tree).__name__}")
    values = {key: float(value) if isinstance(value, str) else value for key, value in tree.items()}
    for key, value in values.items():
        if not isinstance(value, int | float):
            raise ValueError(f"its value of {key} is {type(value).__name__}")
    return values
