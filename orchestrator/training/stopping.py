"""A clean stop: SIGTERM (a job that is stopped, a scheduler) or Ctrl-C ends a run with a checkpoint.

A signal interrupts only the wait for samples; other work finishes first. A second signal stops at once.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from orchestrator.terminal import say_line


@contextlib.contextmanager
def handling_stops(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` take SIGTERM and Ctrl-C. Enter it after `ray.init`, which sets its own for SIGTERM.

    Only the main thread can install handlers: in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


class StopRequested(KeyboardInterrupt):
    """Someone asked the run to stop. Not an `Exception`, so that no handler takes it for a failure."""


class Stop:
    """Remembers whether someone asked the run to stop.

    Args:
        say: Shows the message that answers the first signal.
    """

    def __init__(self, say: Callable[[str], None] = say_line) -> None:
        self.say = say
        self.requested = False
        self._at_once = False
        self._interruptible = False

    def on_signals(self) -> contextlib.AbstractContextManager[None]:
        """Handle SIGTERM and Ctrl-C, as `handling_stops` does."""
        return handling_stops(self._handle)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a stop interrupt this block at any point.

        Raises:
            StopRequested: Someone asked for a stop before the block or in it.
        """
        self._interruptible = True
        try:
            if self.requested:
                raise StopRequested
            yield
        except KeyboardInterrupt:
            # While Ray waits, it turns any exception of a signal handler into a plain KeyboardInterrupt.
            if self.requested and not self._at_once:
                raise StopRequested from None
            raise
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._at_once = True
            raise KeyboardInterrupt
        self.requested = True
        # The signal may interrupt a line that is being printed. Or Ctrl-C has ended the `tee` behind a pipe,
        # and rich exits.
        with contextlib.suppress(RuntimeError, OSError, SystemExit):
            self.say("stopping after a checkpoint; a second signal stops at once")
        if self._interruptible:
            raise StopRequested
