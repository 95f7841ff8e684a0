"""A child process that answers calls of a function, as its parent sees it.

In: the import path of a function, then the arguments of calls. Out: what each call returned or raised, or how
the process ended. What the process does is in `actors/child_main.py`.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from actors.child_main import WHOLE_BYTES
from actors.cpu_use import group_use, process_use
from orchestrator.errors import ConfigError

CHILD_START_TIMEOUT_S = 120.0
"""Seconds for a child's imports and warm-up call. Many may start at once on a busy machine, so it is long."""
CHILD_END_TIMEOUT_S = 10.0
"""Seconds for the end of a killed child. One that the kernel holds longer is left to it."""


class Child:
    """A process that answers calls, one after another. One thread uses it at a time; any may `interrupt` it.

    Attributes:
        pid: Of the process, which leads a process group: a kill also reaches what the function has started.
        connection: The calls go in and the replies come out.
        is_new: Whether it has had no call since its warm-up.
    """

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid = pid
        self.connection = connection
        self.is_new = True
        self._marks: list[tuple[float, float]] = []
        self._late: str | None = None
        self._ending: str | None = None
        self._kill_lock = threading.Lock()

    def send(self, args: tuple[Any, ...], timeout_s: float) -> None:
        """Send a call's arguments; `reply` tells when the child has died, or does not read them in time.

        Raises:
            Exception: They cannot be pickled.
        """
        message = ForkingPickler.dumps(args)
        self.is_new = False
        self._marks = []
        self.mark()
        with contextlib.suppress(OSError), self._in_time(len(message), timeout_s):
            self.connection.send_bytes(message)

    def mark(self) -> None:
        """From now on the child must get a core's share anew for a call that is late to be late by itself."""
        with contextlib.suppress(OSError):
            self._marks.append((time.monotonic(), process_use(self.pid).used_s))

    def replies_within(self, timeout_s: float) -> bool:
        """Whether a reply, or the child's end, comes in that time.

        As `connection.poll`, in a tenth of its time, which short calls notice.
        """
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s * 1000)))

    @property
    def was_killed(self) -> bool:
        """Whether `kill` has collected it."""
        return self._ending is not None

    def has_died(self) -> bool:
        """Whether the child died while it had no call."""
        return self.was_killed or self.replies_within(0.0)

    def reply(self, timeout_s: float) -> tuple[str, Any]:
        """How the call ends: `returned` or `raised` and a value, `memory`, `timeout`, or `died` and how.

        `stopped` and `starved` are timeouts, and `lost` a death, by the fault of the machine. The child lives
        on in the first two cases only.
        """
        deadline = time.monotonic() + timeout_s
        try:
            if not self.replies_within(timeout_s):
                late = self._late or self._why_late()
                ending = self.kill()
                return late, ending
            reply: tuple[str, Any] = self.connection.recv()
            if reply[0] == "long":
                with self._in_time(reply[1], deadline - time.monotonic()):
                    reply = self.connection.recv()
        except (EOFError, OSError):
            ending = self.kill()
            return self._late or ("lost" if self.is_lost() else "died"), ending
        if reply[0] == "memory" or self._late is not None:
            self.kill()
        return reply

    def is_lost(self) -> bool:
        """Whether the child was ended because another process has died."""
        return False

    @contextlib.contextmanager
    def _in_time(self, size: int, timeout_s: float) -> Iterator[None]:
        """Kill the child, which is late, if the transfer of so many bytes does not end in time."""
        if size <= WHOLE_BYTES:
            yield
            return
        watchdog = threading.Timer(max(0.0, timeout_s), self._stop_transfer)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            watchdog.join(CHILD_END_TIMEOUT_S)  # one that fires just now must not strike the next call

    def _stop_transfer(self) -> None:
        self._late = self._why_late()
        self.interrupt()

    def _why_late(self) -> str:
        """`stopped`; `starved` if the process has got less than half of a core since a mark, with what it has
        started; `died` if it has ended, but not what it has started; else `timeout`.
        """
        group = group_use(self.pid)
        own = next((process for process in group if process.pid == self.pid), None)
        if own is None or own.state == "Z":
            return "died"
        if own.state in "Tt":
            return "stopped"
        now, used_s = time.monotonic(), sum(process.used_s for process in group)
        starved = any(used_s - before_s < (now - since) / 2 for since, before_s in self._marks)
        return "starved" if starved and any(process.wants_a_core for process in group) else "timeout"

    def interrupt(self) -> None:
        """Kill the child in the middle of a call of another thread, for which it has died."""
        with self._kill_lock:
            if self._ending is None:
                self._kill_group()

    def kill(self) -> str:
        """Kill the child's process group; returns how the child ended, which may have been before."""
        with self._kill_lock:
            if self._ending is None:
                self._kill_group()
                self._ending = NO_ENDING
                self.connection.close()
                self._ending = self._wait()
            return self._ending

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _wait(self) -> str:
        """How the killed process ended."""
        raise NotImplementedError


class ChildProcess(Child):
    """A child that imports the function by itself; `wait_ready` waits for the import.

    Args:
        function: Import path of the function.
        warm_up: Arguments of a first call, whose outcome is ignored.
        module: Runs in the child, as `python -m`.
        variables: Environment variables of the child, beside the parent's.
        memory_mib: MiB that it may take once it is warm, beyond what it holds then.

    Attributes:
        can_be_copied: Whether a fork of it has all that it has itself; once it is warm.
    """

    def __init__(
        self,
        function: str,
        warm_up: tuple[Any, ...] | None,
        module: str = "actors.child_main",
        variables: Mapping[str, str] | None = None,
        memory_mib: int | None = None,
    ) -> None:
        self.function = function
        self.can_be_copied = False
        connection, child_connection = Pipe()
        lifeline, self._lifeline = os.pipe()
        self._ready = False
        inherited = (child_connection.fileno(), lifeline)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, inherited)],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    **os.environ,
                    **(variables or {}),
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                },
            )
        except OSError as error:
            connection.close()
            os.close(self._lifeline)
            raise ConfigError(
                f"'{function}': no process can be started for it: {error}. Does this machine have memory "
                "and processes (ulimit -u) left?"
            ) from error
        finally:
            child_connection.close()
            os.close(lifeline)
        super().__init__(self.process.pid, connection)
        with contextlib.suppress(OSError):  # `wait_ready` tells of its end
            self.connection.send((function, warm_up, memory_mib))

    def wait_ready(self) -> None:
        """Wait until the child is warm.

        Raises:
            ConfigError: It did not start, or it cannot import the function. It is killed.
        """
        if self._ready:
            return
        try:
            if not self.connection.poll(CHILD_START_TIMEOUT_S):
                self.kill()
                raise ConfigError(
                    f"'{self.function}' was not imported and warm within {CHILD_START_TIMEOUT_S:g} s"
                )
            problem, self.can_be_copied = self.connection.recv()
        except (EOFError, OSError):
            raise ConfigError(
                f"'{self.function}': its process {self.kill()} while it started; see its output above"
            ) from None
        if problem is not None:
            self.kill()
            raise ConfigError(problem)
        self._ready = True

    def _kill_group(self) -> None:
        if self.process.returncode is None:
            super()._kill_group()

    def _wait(self) -> str:
        os.close(self._lifeline)
        try:
            return ending(self.process.wait(CHILD_END_TIMEOUT_S))
        except subprocess.TimeoutExpired:
            return NO_ENDING


NO_ENDING = f"did not end within {CHILD_END_TIMEOUT_S:g} s of its kill"


def ending(status: int) -> str:
    """An exit status in words; a negative one is a signal."""
    if status >= 0:
        return f"exited with status {status}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-status, f'signal {-status}')}"
