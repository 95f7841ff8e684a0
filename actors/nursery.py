"""Children by fork: one process imports the function and is warm, and each child is a copy of it.

In: the import path of a function. Out: warm children, in milliseconds rather than in the second that imports
take. A child that checks for too long can so be left alone with its check, and another one goes on.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from actors.child import CHILD_END_TIMEOUT_S, NO_ENDING, Child, ChildProcess, ending
from actors.child_main import answer_calls, bind_life, limit_memory, started_function

FORK_TIMEOUT_S = CHILD_END_TIMEOUT_S
"""Seconds for a fork, or for the end of a killed copy. A nursery that takes longer is stopped or stuck."""
FORK_TRIALS = 3
"""Forks that may fail before a child is started from nothing."""


class Nursery:
    """Gives warm children. Several threads may ask it.

    A function whose imports or first call start threads or processes, or open files or connections, is not
    copied: a fork has no threads, and shares the rest. Its children are started from nothing.

    Args:
        function: Import path of the function.
        warm_up: Arguments of a first call, whose outcome is ignored.
        memory_mib: MiB that a child may take beyond what it holds at first; without a limit when None.

    Attributes:
        child_s: Seconds that the newest child took to come, without the start of a new nursery.

    Raises:
        ConfigError: The function cannot be imported, or the process did not start.
    """

    def __init__(self, function: str, warm_up: tuple[Any, ...] | None, memory_mib: int | None) -> None:
        self._function = function
        self._warm_up = warm_up
        self._memory_mib = memory_mib
        self._lock = threading.Lock()
        self._closed = False
        self.child_s = 0.0
        self._source = self._start()

    def child(self) -> Child:
        """A new child, ready for calls.

        Raises:
            ConfigError: It did not start.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the nursery is closed")
            for _ in range(FORK_TRIALS):
                if self._source.can_be_copied and self._source.was_killed:
                    self._source = self._start()
                if not self._source.can_be_copied:
                    break
                with suppress(OSError):
                    return self._timed(self._fork)
            return self._timed(self._fresh)

    def close(self) -> None:
        """End the process that is copied, and with it all copies; no child is given afterwards."""
        with self._lock:
            self._closed = True
            self._source.kill()

    def _timed(self, start: Callable[[], Child]) -> Child:
        started = time.monotonic()
        child = start()
        self.child_s = time.monotonic() - started
        return child

    def _fresh(self) -> Child:
        child = ChildProcess(self._function, self._warm_up, memory_mib=self._memory_mib)
        child.wait_ready()
        return child

    def _start(self) -> ChildProcess:
        # One thread for numpy, as in an actor with one CPU: its import would start others.
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        source = ChildProcess(self._function, self._warm_up, __name__, variables)
        source.wait_ready()
        if not source.can_be_copied:
            source.kill()
        return source

    def _fork(self) -> Child:
        """A copy of the nursery's process.

        Raises:
            OSError: There is none: the nursery is gone, or was too slow and is killed, or the copy has ended.
        """
        connection, end_of_child = Pipe()
        with end_of_child:
            pid = _answer(self._source, ("fork", self._memory_mib), end_of_child)
        if pid is None:
            connection.close()
            raise ChildProcessError("the machine has no room for another process")
        child = _Copy(pid, connection, self._source, self._lock)
        with suppress(EOFError, OSError):
            if child.replies_within(FORK_TIMEOUT_S):
                connection.recv()
                return child
        child.interrupt()
        connection.close()
        with suppress(OSError):
            _answer(self._source, ("wait", pid))
        raise ChildProcessError("a copy did not start")


class _Copy(Child):
    """A child by fork; only its nursery can wait for its end."""

    def __init__(self, pid: int, connection: Connection, source: ChildProcess, lock: threading.Lock) -> None:
        super().__init__(pid, connection)
        self._source = source
        self._lock = lock

    def is_lost(self) -> bool:
        return self._source.was_killed  # which ends its copies

    def _wait(self) -> str:
        with self._lock, suppress(OSError):
            status = _answer(self._source, ("wait", self.pid))
            return NO_ENDING if status is None else ending(status)
        return "ended, as did the process that it was copied from"


def _answer(
    source: ChildProcess, request: tuple[str, int | None], passed: Connection | None = None
) -> int | None:
    """What a nursery's process answers to a request; None if it cannot do it.

    Raises:
        OSError: It is gone; one that is too slow is killed, and its copies with it.
    """
    try:
        source.connection.send(request)
        if passed is not None:
            send_handle(source.connection, passed.fileno(), source.pid)
        if not source.replies_within(FORK_TIMEOUT_S):
            raise TimeoutError
        answer: int | None = source.connection.recv()
    except (EOFError, OSError) as error:
        source.kill()
        raise ChildProcessError(f"the process of a nursery {source.kill()}") from error
    return answer


def _serve(parent: Connection, lifeline: int) -> None:
    """The main function of a nursery's process, and of its copies."""
    function = started_function(parent, lifeline)
    if function is None:
        return
    gc.collect()
    gc.freeze()  # what copies share is not written to by their collections
    sys.stdout.flush()  # else each copy would print what the warm-up has printed
    unended: set[int] = set()
    while True:
        request, value = parent.recv()
        if request == "wait":
            unended.add(value)
            parent.send(_ended(value, unended))
            continue
        handle = recv_handle(parent)
        try:
            pid = os.fork()
        except OSError:
            os.close(handle)
            parent.send(None)
            continue
        if pid == 0:
            parent.close()
            _serve_copy(handle, lifeline, value, function)
            return
        with suppress(OSError):  # it has ended
            os.setpgid(pid, pid)  # both do it, as neither knows which is first
        os.close(handle)
        parent.send(pid)


def _serve_copy(handle: int, lifeline: int, memory_mib: int | None, function: Callable[..., Any]) -> None:
    """The main function of a copy."""
    os.setpgid(0, 0)
    os.set_inheritable(handle, False)
    # A pipe opened once more has an owner of its own, which the kernel tells of its end.
    bind_life(os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY))
    if memory_mib is not None:
        limit_memory(memory_mib)
    connection = Connection(handle)
    connection.send(None)
    answer_calls(connection, function)


def _ended(pid: int, unended: set[int]) -> int | None:
    """The exit status of a killed copy, or None if the kernel does not end it; it is waited for later then.

    Args:
        unended: Copies that were killed. Those that have ended are taken out.
    """
    status, deadline, pause_s = None, time.monotonic() + CHILD_END_TIMEOUT_S / 2, 1e-4
    while True:
        for one in list(unended):
            ended, code = os.waitpid(one, os.WNOHANG)
            if ended:
                unended.remove(one)
                status = os.waitstatus_to_exitcode(code) if one == pid else status
        if pid not in unended or time.monotonic() > deadline:
            return status
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.01)


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
