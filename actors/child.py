"""A child process that imports a function, warms it up and answers calls of it.

In: the import path of a function, then the arguments of calls. Out: what each call returned or raised, or how
the process ended. The child dies with its parent.
"""

import contextlib
import fcntl
import importlib
import inspect
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError

CHILD_START_TIMEOUT_S = 120.0
"""Seconds for a child's imports and warm-up call. Many may start at once on a busy machine, so it is long."""


def load_function(import_path: str) -> Callable[..., Any]:
    """The function at `package.module:function`.

    Raises:
        ConfigError: It cannot be imported; the message says which part of the path is wrong.
    """
    module_name, _, function_name = import_path.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"'{import_path}' is not an import path: write it as package.module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"'{import_path}': module '{module_name}' cannot be imported ({type(error).__name__}: {error}); "
            "is its folder on PYTHONPATH on every node?"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = (
            "has no such name"
            if function is None
            else f"has a {type(function).__name__} there, not a function"
        )
        raise ConfigError(f"'{import_path}': module '{module_name}' ({module.__file__}) {found}")
    return function


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
        self._sent = 0.0, 0.0
        self._ending: str | None = None
        self._kill_lock = threading.Lock()

    def send(self, args: tuple[Any, ...]) -> None:
        """Send a call's arguments; `reply` tells when the child has died."""
        self.is_new = False
        with contextlib.suppress(OSError):
            self._sent = time.monotonic(), _state_and_cpu_s(self.pid)[1]
            self.connection.send(args)

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

        `held up` is a timeout by the fault of the machine. The child lives on in the first two cases only.
        """
        try:
            if not self.replies_within(timeout_s):
                kind = "held up" if self._is_held_up() else "timeout"
                self.kill()
                return kind, None
            reply: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            return "died", self.kill()
        if reply[0] == "memory":
            self.kill()
        return reply

    def _is_held_up(self) -> bool:
        """Whether the process is stopped, or has got less than half of a core since the call was sent.

        Raises:
            OSError: There is no such process.
        """
        sent, used_s = self._sent
        state, now_used_s = _state_and_cpu_s(self.pid)
        return state in "Tt" or (state in "RD" and now_used_s - used_s < (time.monotonic() - sent) / 2)

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
                self._ending = self._wait()
                self.connection.close()
            return self._ending

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _wait(self) -> str:
        """How the killed process ended."""
        raise NotImplementedError


def _state_and_cpu_s(pid: int) -> tuple[str, float]:
    """The letter of a process's state (proc(5)), and the CPU seconds that it has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ChildProcess(Child):
    """A child that imports the function by itself; `wait_ready` waits for the import.

    Args:
        function: Import path of the function.
        warm_up: Arguments of a first call, whose outcome is ignored.
        module: Runs in the child, as `python -m`.
        variables: Environment variables of the child, beside the parent's.
        memory_mib: MiB that it may take once it is warm, beyond what it holds then.
    """

    def __init__(
        self,
        function: str,
        warm_up: tuple[Any, ...] | None,
        module: str = __name__,
        variables: Mapping[str, str] | None = None,
        memory_mib: int | None = None,
    ) -> None:
        self.function = function
        connection, child_connection = Pipe()
        lifeline, self._lifeline = os.pipe()
        self._ready = False
        inherited = (child_connection.fileno(), lifeline)
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
        super().__init__(self.process.pid, connection)
        child_connection.close()
        os.close(lifeline)
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
            problem = self.connection.recv()
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
        status = self.process.wait()
        os.close(self._lifeline)
        return ending(status)


def ending(status: int) -> str:
    """An exit status in words; a negative one is a signal."""
    if status >= 0:
        return f"exited with status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def bind_life(lifeline: int) -> None:
    """End this process when the last writer of the pipe `lifeline` ends."""
    # The kernel then sends SIGIO, which ends a process by default. It does so in the middle of C code too.
    # Unlike a parent-death signal, it does not depend on which thread started the child.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)


def started_function(connection: Connection, lifeline: int) -> Callable[..., Any] | None:
    """A child's first steps: bind its life to the parent's, load the function, warm it up, report.

    None where the function cannot be used, which the parent then knows.
    """
    bind_life(lifeline)
    # Python refuses longer numbers because they take long; here the deadline bounds that.
    sys.set_int_max_str_digits(0)
    import_path, warm_up, memory_mib = connection.recv()
    try:
        function = load_function(import_path)
        if warm_up is not None:
            _warm(function, warm_up)
        if memory_mib is not None:
            limit_memory(memory_mib)
    except ConfigError as error:
        connection.send(str(error))
        return None
    connection.send(None)
    return function


def limit_memory(mib: int) -> None:
    """From now on an allocation that needs more address space raises a MemoryError."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = held + mib * 2**20
    # Only the soft limit, so that a verifier can give the programs that it starts limits of their own.
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def _warm(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        value = function(*arguments)
    except ConfigError:
        raise
    except Exception:
        return  # the first real call fails likewise, and says so
    if inspect.iscoroutine(value):
        value.close()


def answer_calls(connection: Connection, function: Callable[..., Any]) -> None:
    """Answer calls of the function until the parent closes the connection."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            args = connection.recv()
            try:
                reply = ForkingPickler.dumps(("returned", function(*args)))
            except MemoryError:
                reply = ForkingPickler.dumps(("memory", None))
            except Exception:
                reply = ForkingPickler.dumps(("raised", traceback.format_exc()))
            connection.send_bytes(reply)


def _serve(connection: Connection, lifeline: int) -> None:
    """The child's main function."""
    function = started_function(connection, lifeline)
    if function is not None:
        answer_calls(connection, function)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
