"""`run.log` in a run's folder: every message of the command, with its time, and the error that ended it.

The logger `laser` is the source. A line is written without secrets, its control characters spelt out.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from rich.errors import MarkupError
from rich.markup import escape
from rich.text import Text

from orchestrator.shown_text import safe_to_show

RUN_LOG = "run.log"


@contextlib.contextmanager
def logged_to(folder: Path) -> Iterator[None]:
    """Append the messages of the logger `laser`, and the error that leaves the block, to `folder`'s run.log.

    A log that cannot be written, as on a full disk, does not disturb the command.
    """
    try:
        handler = _RunLogHandler(folder / RUN_LOG)
    except OSError:
        yield
        return
    logger = logging.getLogger("laser")
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        handler.handle(
            logger.makeRecord(
                logger.name, logging.ERROR, "", 0, escape(f"{type(error).__name__}: {error}"), (), None
            )
        )
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


class _RunLogHandler(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def format(self, record: logging.LogRecord) -> str:
        return safe_to_show(_without_markup(super().format(record)))

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line."""


def _without_markup(text: str) -> str:
    try:
        return Text.from_markup(text).plain
    except MarkupError:
        return text
