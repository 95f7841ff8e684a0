"""Children by fork: one process imports the function and is warm, and each child is a copy of it.

In: the import path of a function. Out: warm children, in milliseconds rather than in the second that imports
take. A child that checks for too long can so be left alone with its check, and another one goes on.
"""

import gc
import os
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from actors.child import (
    Child,
    ChildProcess,
    answer_calls,
    bind_life,
    ending,
    limit_memory,
    started_function,
)

FORK_TIMEOUT_S = 10.0
"""Seconds for a fork or the end of a killed child. A nursery that takes longer is stopped or stuck."""


class Nursery:
    """Gives warm children. Several threads may ask it.

    A function whose imports start threads cannot be copied: a fork has none of them. Its children are started
    from nothing.

    Args:
        function: Import path of the function.
        warm_up: Arguments of a first call, whose outcome is ignored.
        memory_mib: MiB that a child may take beyond what it holds at first; without a limit when None.

    Attributes:
        child_s: Seconds that the newest child took to come.

    Raises:
        ConfigError: The function cannot be imported, or the process did not start.
    """

    def __init__(self, function: str, warm_up: tuple[Any, ...] | None, memory_mib: int | None) -> None:
        self._function = function
        self._warm_up = warm_up
        self._memory_mib = memory_mib
        self._lock = threading.Lock()
        self.child_s = 0.0
        self._source = self._start()

    def child(self) -> Child:
        """A new child, ready for calls.

        Raises:
            ConfigError: It did not start.
        """
        with self._lock:
            started = time.monotonic()
            child = self._child()
            self.child_s = time.monotonic() - started
            return child

    def close(self) -> None:
        """End the process that is copied, and with it all copies; no child is given afterwards."""
        with self._lock:
            self._source.kill()

    def _child(self) -> Child:
        if self._forks:
            try:
                return self._fork()
            except OSError:  # the nursery was killed, or does not answer
                self._source = self._start()
            with suppress(OSError):
                return self._fork()
        child = ChildProcess(self._function, self._warm_up, memory_mib=self._memory_mib)
        child.wait_ready()
        return child

    def _start(self) -> ChildProcess:
        # One thread for numpy, as in an actor with one CPU: its import would start others.
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        source = ChildProcess(self._function, self._warm_up, __name__, variables)
        source.wait_ready()
        threads = source.connection.recv()
        self._forks = threads == 1
        if not self._forks:
            source.kill()
        return source

    def _fork(self) -> Child:
        """A copy of the nursery's process.

        Raises:
            OSError: The nursery is gone, or was too slow and is killed.
        """
        connection, end_of_child = Pipe()
        with end_of_child:
            pid = _answer(self._source, ("fork", self._memory_mib), end_of_child)
        child = _Copy(pid, connection, self._source, self._lock)
        with suppress(EOFError, OSError):
            if child.replies_within(FORK_TIMEOUT_S):
                connection.recv()
                return child
        child.interrupt()
        self._source.kill()
        raise ChildProcessError("a copy did not start")


class _Copy(Child):
    """A child by fork; only its nursery can wait for its end."""

    def __init__(self, pid: int, connection: Connection, source: ChildProcess, lock: threading.Lock) -> None:
        super().__init__(pid, connection)
        self._source = source
        self._lock = lock

    def _wait(self) -> str:
        with self._lock, suppress(OSError):
            return ending(_answer(self._source, ("wait", self.pid)))
        return "ended, and so did the process that it was copied from"


def _answer(source: ChildProcess, request: tuple[str, int | None], passed: Connection | None = None) -> int:
    """What a nursery's process answers to a request.

    Raises:
        OSError: It is gone; one that is too slow is killed, and its copies with it.
    """
    try:
        source.connection.send(request)
        if passed is not None:
            send_handle(source.connection, passed.fileno(), source.pid)
        if not source.replies_within(FORK_TIMEOUT_S):
            raise TimeoutError
        answer: int = source.connection.recv()
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
    parent.send(len(os.listdir("/proc/self/task")))
    while True:
        request, value = parent.recv()
        if request == "wait":
            _, status = os.waitpid(value, 0)
            parent.send(os.waitstatus_to_exitcode(status))
            continue
        handle = recv_handle(parent)
        pid = os.fork()
        if pid == 0:
            parent.close()
            os.setpgid(0, 0)
            # A pipe opened once more has an owner of its own, which the kernel tells of its end.
            bind_life(os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY))
            if value is not None:
                limit_memory(value)
            connection = Connection(handle)
            connection.send(None)
            answer_calls(connection, function)
            return
        # Both do it, as neither knows which is first.
        os.setpgid(pid, pid)
        os.close(handle)
        parent.send(pid)


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
