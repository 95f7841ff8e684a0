"""What a user sees of a running command: a live panel in a terminal, plain lines elsewhere.

Every message goes through the logger `laser`. This module shows it; `storage/run_log.py` keeps it. All output
goes through `SafeConsole` or `say_line`, so that a model's text cannot steer the terminal.
"""

import json
import logging
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table

from orchestrator.measures import Place, is_point, shown_in
from orchestrator.shown_text import safe_to_show, without_secrets

SHOWN = {measure.key: measure.label for measure in shown_in(Place.PANEL)}
"""What the panel and the plain lines show of a step: labels by metric."""
BROKEN_RULES = {measure.key: measure.title for measure in shown_in(Place.HEALTH)}
"""What is said while a health rule is broken, by its metric."""
LOGGER = logging.getLogger("laser")
PLAIN_LINES_EVERY = 10
BAR_FROM = 10_000
"""Fewer items are done before anyone would look for a bar."""
STEP_RECORDS_VARIABLE = "LASER_STEP_RECORDS"
"""With this environment variable each step is printed as a record, a line of JSON for programs."""


class SafeConsole(Console):
    """rich's console, in which a text's own control sequences have no effect and secrets are hidden."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Segments of what is printed; only rich itself makes control sequences."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=safe_to_show(segment.text))


def say_line(text: str, stderr: bool = False, end: str = "\n") -> None:
    """Print a text as it is, but for secrets and control sequences."""
    print(safe_to_show(text), file=sys.stderr if stderr else sys.stdout, end=end, flush=True)


def hide_secrets_in_tracebacks() -> None:
    """Print the tracebacks of this process without secrets, from now on."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        say_line("".join(traceback.format_exception(kind, error, trace)), stderr=True, end="")

    sys.excepthook = show


class StepLine(NamedTuple):
    """A step as a line: as text for a person, or as a record for a program."""

    step: int
    total: int
    values: Mapping[str, float]
    """Metrics by their full names, of which the line has those of `SHOWN` and `BROKEN_RULES`."""
    eta: str
    """Time to the last step, such as 1:02:03, or a dash."""

    def __str__(self) -> str:
        shown = "  ".join(
            f"{label} {_number(key, self.values[key])}" for key, label in SHOWN.items() if key in self.values
        )
        unhealthy = f"  unhealthy: {broken}" if (broken := _broken_rules(self.values)) else ""
        return f"step {self.step}/{self.total}  {shown}  ETA {self.eta}{unhealthy}"

    def record(self) -> str:
        """The step as a line of JSON; an undefined value is null, one that overflowed a text such as inf."""
        known = (key for key in (*SHOWN, *BROKEN_RULES) if key in self.values)
        values = {key: _json_number(key, self.values[key]) for key in known}
        return json.dumps({"event": "step", **self._asdict(), "values": values})

    @classmethod
    def from_record(cls, line: str) -> "StepLine | None":
        """The step of a record; None for any other line."""
        if not line.startswith('{"event": "step"'):
            return None
        try:
            read = json.loads(line)
            values = {
                key: math.nan if value is None else float(value) for key, value in read["values"].items()
            }
            return cls(read["step"], read["total"], values, read["eta"])
        except (ValueError, KeyError, AttributeError):
            return None


class ConsoleHandler(logging.Handler):
    """Prints messages of the logger `laser`, with rich, on the console of the panel that they come from."""

    def createLock(self) -> None:
        """Take no lock: rich has one, and two could block each other when a signal handler prints."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        if panel := getattr(record, "panel", None):
            panel.console.print(record.getMessage(), soft_wrap=not panel.live)
        elif record.levelno >= logging.WARNING:  # of a command that has no panel yet
            say_line(f"warning: {record.getMessage()}", stderr=True)


LOGGER.setLevel(logging.INFO)
LOGGER.propagate = False  # Ray adds handlers to the root logger, which would print each line again.
LOGGER.addHandler(ConsoleHandler())


class LivePanel:
    """A panel that a terminal redraws below the lines that were said; without a terminal, only the lines."""

    def __init__(self, console: Console | None) -> None:
        self.console = console or SafeConsole(highlight=False)
        self.live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def say(self, message: str) -> None:
        """Show and log a line; brackets in it are rich's markup."""
        # Here, because the console may print a message in pieces.
        LOGGER.info(without_secrets(message), extra={"panel": self})

    def say_plainly(self, message: str) -> None:
        """Show and log a line in which brackets are not markup, such as another program's message."""
        self.say(escape(message))


class RunProgress(LivePanel):
    """Shows the steps of a run.

    Args:
        total: The run's last step.
        done: The last step that an earlier command finished.
    """

    def __init__(self, title: str, total: int, done: int, console: Console | None = None) -> None:
        super().__init__(console)
        self.total = total
        self.first = done
        self.first_step_at: float | None = None
        self.prints_records = bool(os.environ.get(STEP_RECORDS_VARIABLE))
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
            console=self.console,
        )
        self.task = self.bar.add_task(title, total=total, completed=done, eta="-")
        self.values: Mapping[str, float] = {}

    def step(self, step: int, values: Mapping[str, float], eta: str | None = None) -> None:
        """Show step `step`, which is done, with its metrics.

        Args:
            eta: Time to the last step; measured between the calls unless given.
        """
        self.values = values
        eta = eta or self._eta(step)
        line = StepLine(step, self.total, values, eta)
        LOGGER.info(line)  # Without a panel it is only logged.
        if self.live:
            self.bar.update(self.task, completed=step, eta=eta)
            self.live.update(self._panel())
            return
        if self.prints_records:
            self.console.print(line.record(), soft_wrap=True, markup=False)
        elif step % PLAIN_LINES_EVERY == 0 or step in (self.first, self.total):
            self.console.print(str(line), soft_wrap=True)

    def _eta(self, step: int) -> str:
        """Time to the last step at the pace so far, without the first step, which waited for the pools."""
        now = time.monotonic()
        if self.first_step_at is None:
            self.first_step_at, self.first = now, step
        done = step - self.first
        return clock((now - self.first_step_at) / done * (self.total - step)) if done else "-"

    def _panel(self) -> Table:
        figures = Table(box=None, padding=(0, 2, 0, 0))
        present = {label: self.values[key] for key, label in SHOWN.items() if key in self.values}
        for label in present:
            figures.add_column(label, justify="right")
        figures.add_row(*(_number(key, self.values[key]) for key, label in SHOWN.items() if label in present))
        panel = Table.grid()
        panel.add_row(self.bar)
        panel.add_row(figures)
        if broken := _broken_rules(self.values):
            panel.add_row(f"[red]unhealthy[/red] {broken}")
        return panel


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[float], None]]:
    """A bar for work that goes through many items, in a terminal; it is gone when the work is done.

    Yields:
        A function to call with the number of items that were done since its last call.
    """
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=SafeConsole(stderr=True),
        transient=True,
        disable=total < BAR_FROM or not sys.stderr.isatty(),
    )
    task = bar.add_task(title, total=total)
    with bar:
        yield lambda items: bar.advance(task, items)


def program(name: str) -> str:
    """A command of this environment as a user can type it here, even if the environment is not activated."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) or not path.exists():
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def figure(value: float | None) -> str:
    """A figure for a table; a dash where it is not defined."""
    return "-" if value is None else f"{value:.3f}"


def _broken_rules(values: Mapping[str, float]) -> str:
    return ", ".join(title for key, title in BROKEN_RULES.items() if values.get(key))


def _number(key: str, value: float) -> str:
    if not math.isfinite(value):
        return str(value) if is_point(key, value) else "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _json_number(key: str, value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return str(value) if is_point(key, value) else None


def clock(seconds: float) -> str:
    """A duration as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
