"""A clean stop: SIGTERM (a job that is stopped, a scheduler) or Ctrl-C ends a run with a checkpoint.

A signal interrupts only what may be given up, which is waiting for samples; anything else comes to its end first. A second signal ends
the process at once.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequested(KeyboardInterrupt):
    """The run was asked to stop. No `Exception`, so that nothing on its way takes it for a failure."""


class Stop:
    """Whether a run was asked to stop. Of two runs in one process, and outside the main thread, signals are the caller's.

    Args:
        say: Told of the first signal.
    """

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say = say
        self.requested = False
        self._at_once = False
        self._interruptible = False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take the signals. To be entered after `ray.init`, which sets a handler of its own for SIGTERM."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """What runs here may be given up at any point. Raises StopRequested, at its start too."""
        self._interruptible = True
        try:
            if self.requested:
                raise StopRequested
            yield
        except KeyboardInterrupt:
            # Ray, where it waits, makes a plain KeyboardInterrupt of whatever a signal handler raises.
            if self.requested and not self._at_once:
                raise StopRequested from None
            raise
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        if self.requested:
            self._at_once = True
            raise KeyboardInterrupt
        self.requested = True
        # It may come in the middle of a line that is being printed; or Ctrl-C has ended the `tee` that took what is said (rich exits then).
        with contextlib.suppress(RuntimeError, OSError, SystemExit):
            self.say("stopping with a checkpoint; once more stops at once")
        if self._interruptible:
            raise StopRequested
