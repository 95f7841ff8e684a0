"""`run.log` in a run's folder: every message of the command, with its time, and the error that ended it.

The logger `laser` is the source. Secrets are hidden before a line is written.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from rich.errors import MarkupError
from rich.markup import escape
from rich.text import Text

RUN_LOG = "run.log"
_PASSWORD_IN_URL = re.compile(
    r"(?<=://)([^/\s:@]*):[^/\s]+(?=@)|(?<=[?&])(password|token|secret|key)=[^&\s]+"
)
_SECRET_NAME = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)")
_SHORTEST_SECRET = 6
"""A shorter value of a variable is part of ordinary words."""


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


def without_secrets(text: str) -> str:
    """`text` without passwords in URLs and without the values of secret environment variables."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return _PASSWORD_IN_URL.sub(
        lambda found: f"{found[1]}:***" if found[1] is not None else f"{found[2]}=***", text
    )


class _RunLogHandler(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(_without_markup(super().format(record)))

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line."""


def _without_markup(text: str) -> str:
    try:
        return Text.from_markup(text).plain
    except MarkupError:
        return text
