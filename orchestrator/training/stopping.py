"""A clean stop: SIGTERM (a job that is stopped, a scheduler) or Ctrl-C ends a run with a checkpoint.

A signal interrupts only what may be given up, which is waiting for samples; anything else comes to its end first. A second signal ends
the process at once.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def handling_stops(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `handler` take SIGTERM and Ctrl-C. To be entered after `ray.init`, which sets a handler of its own for SIGTERM.

    Outside the main thread signals are the caller's.
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
    """The run was asked to stop. No `Exception`, so that nothing on its way takes it for a failure."""


class Stop:
    """Whether a run was asked to stop.

    Args:
        say: Told of the first signal.
    """

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say = say
        self.requested = False
        self._at_once = False
        self._interruptible = False

    def on_signals(self) -> contextlib.AbstractContextManager[None]:
        """Take the signals, as `handling_stops` does."""
        return handling_stops(self._handle)

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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._at_once = True
            raise KeyboardInterrupt
        self.requested = True
        # It may come in the middle of a line that is being printed; or Ctrl-C has ended the `tee` that took what is said (rich exits then).
        with contextlib.suppress(RuntimeError, OSError, SystemExit):
            self.say("stopping with a checkpoint; once more stops at once")
        if self._interruptible:
            raise StopRequested
