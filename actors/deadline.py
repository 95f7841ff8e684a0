"""Calls a function in a child process and kills the child when a call takes too long.

In: the import path of a function, then calls of it. Out: what it returns, or `DeadlineExceeded`,
`MemoryExceeded`, `ChildDied` or `CallFailed`. Only a kill from outside stops long work in C, such as on big
integers. A deadline inside the process, by signal or by thread, would not hold.
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
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError

CHILD_START_TIMEOUT_S = 120.0
"""Seconds for a child's imports and warm-up call. Many may start at once on a busy machine, so it is long."""


class DeadlineExceeded(Exception):
    """The call took longer than its deadline, and its process was killed."""


class MemoryExceeded(Exception):
    """The call asked for more memory than its limit; another process has replaced its own."""


class ChildDied(Exception):
    """The process died during the call (exit, crash, out of memory). Another one has replaced it."""


class CallFailed(Exception):
    """The function raised; the message is the child's traceback."""


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


class DeadlineExecutor:
    """One child process that runs one function, call after call.

    A call's deadline counts from the moment that its arguments are sent to a child that waits for them:
    neither the wait for the child nor the child's imports count. Several threads may call it; their calls
    wait for one another.

    Args:
        function: Import path of the function.
        timeout_s: Seconds that a call may take.
        warm_up: Arguments of a first call without a deadline, which pays for lazy imports. Its outcome is
            ignored, unless it is a `ConfigError`.
        memory_mib: MiB that a call may take beyond what the warm child holds; without a limit when None.

    Attributes:
        restarts: How many children have been replaced.

    Raises:
        ConfigError: The function cannot be imported, or the child did not start.
    """

    def __init__(
        self,
        function: str,
        timeout_s: float,
        warm_up: tuple[Any, ...] | None = None,
        memory_mib: int | None = None,
    ) -> None:
        self.restarts = 0
        self._timeout_s = timeout_s
        self._memory_mib = memory_mib
        self._start = partial(ChildProcess, function, warm_up, memory_mib=memory_mib)
        self._lock = threading.Lock()
        self._child = self._start()
        self._child.wait_ready()

    def call(self, *args: Any, timeout_s: float | None = None) -> Any:
        """The value of `function(*args)`. The executor can be used after an error too.

        Args:
            timeout_s: Of this call; the executor's unless given.

        Raises:
            DeadlineExceeded: The call took longer than the deadline; where its process was stopped or got no
                core, once more in a new one.
            MemoryExceeded: The call asked for more memory than its limit.
            ChildDied: The child died during the call.
            CallFailed: The function raised, or its value cannot be pickled.
            ConfigError: A replaced child did not start.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        with self._lock:
            if self._child.process.poll() is not None:
                self._restart()  # the child died between two calls, so this one need not fail
            is_first = self._child.is_new
            outcome, value = self._answer(args, timeout_s)
            if outcome == "held up" or (outcome == "memory" and not is_first):
                # Former calls leave something in the child's memory: a new one shows whose fault it is.
                outcome, value = self._answer(args, timeout_s)
        if outcome in ("late", "held up"):
            raise DeadlineExceeded(f"took longer than {timeout_s:g} s")
        if outcome == "memory":
            raise MemoryExceeded(f"took more than {self._memory_mib} MiB of memory")
        if outcome == "raised":
            raise CallFailed(value)
        return value

    def _answer(self, args: tuple[Any, ...], timeout_s: float) -> tuple[str, Any]:
        """The child's answer to a call, and a value: `returned`, `raised` or `memory`; else `late`, or
        `held up` where the machine made it late.
        """
        self._child.wait_ready()
        self._child.is_new = False
        connection = self._child.connection
        try:
            _, used_s = _state_and_cpu_s(self._child.process.pid)
            connection.send(args)
            if not _readable(connection, timeout_s):
                is_held_up = _is_held_up(self._child.process.pid, used_s, timeout_s)
                self._restart()
                return ("held up" if is_held_up else "late"), None
            reply = connection.recv()
        except (EOFError, OSError):
            raise ChildDied(f"the process {self._restart()} during the call") from None
        if reply[0] == "memory":
            self._restart()
        return reply

    def close(self) -> None:
        """Kill the child. The executor cannot be used afterwards."""
        with self._lock:
            self._child.kill()

    def _restart(self) -> str:
        """Replace the child, without waiting for its imports; returns how the old one ended."""
        ending = self._child.kill()
        self.restarts += 1
        self._child = self._start()
        return ending


def _readable(connection: Connection, timeout_s: float) -> bool:
    """As `connection.poll`, in a tenth of its time, which short calls notice."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _is_held_up(pid: int, used_s: float, timeout_s: float) -> bool:
    """Whether a call is late because its process is stopped, or because it got less than half of a core.

    Args:
        used_s: CPU seconds of the process before the call.
    """
    state, now_used_s = _state_and_cpu_s(pid)
    return state in "Tt" or (state in "RD" and now_used_s - used_s < timeout_s / 2)


def _state_and_cpu_s(pid: int) -> tuple[str, float]:
    """The letter of a process's state (proc(5)), and the CPU seconds that it has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ChildProcess:
    """A child process that imports the function and then answers calls; `wait_ready` waits for the import.

    Args:
        function: Import path of the function.
        warm_up: Arguments of a first call, whose outcome is ignored.
        module: Runs in the child, as `python -m`.
        variables: Environment variables of the child, beside the parent's.
        memory_mib: MiB that it may take once it is warm, beyond what it holds then.

    Attributes:
        is_new: Whether it has had no call since its warm-up.
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
        self.is_new = True
        self.connection, child_connection = Pipe()
        lifeline, self._lifeline = os.pipe()
        self._ready = False
        inherited = (child_connection.fileno(), lifeline)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, inherited)],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            # Its own process group: a kill also reaches the processes that the function has started.
            start_new_session=True,
            env={
                **os.environ,
                **(variables or {}),
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            },
        )
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

    def kill(self) -> str:
        """Kill the child's process group; returns how the child ended, which may have been before."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        if not self.connection.closed:
            self.connection.close()
            os.close(self._lifeline)
        if status >= 0:
            return f"exited with status {status}"
        return f"was killed by {signal.Signals(-status).name}"


def started_function(connection: Connection, lifeline: int) -> Callable[..., Any] | None:
    """A child's first steps: bind its life to the parent's, load the function, warm it up, report.

    None where the function cannot be used, which the parent then knows.
    """
    # When the parent's end of the lifeline closes, the kernel sends SIGIO, which ends a process by default.
    # It does so in the middle of C code too. Unlike a parent-death signal, it does not depend on which thread
    # started the child.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
    # Python refuses longer numbers because they take long; here the deadline bounds that.
    sys.set_int_max_str_digits(0)
    import_path, warm_up, memory_mib = connection.recv()
    try:
        function = load_function(import_path)
        if warm_up is not None:
            _warm(function, warm_up)
        if memory_mib is not None:
            _limit_memory(memory_mib)
    except ConfigError as error:
        connection.send(str(error))
        return None
    connection.send(None)
    return function


def _limit_memory(mib: int) -> None:
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


def _serve(connection: Connection, lifeline: int) -> None:
    """The child's main function: answer calls until the connection closes."""
    function = started_function(connection, lifeline)
    while function is not None:
        args = connection.recv()
        try:
            reply = ForkingPickler.dumps(("returned", function(*args)))
        except MemoryError:
            reply = ForkingPickler.dumps(("memory", None))
        except Exception:
            reply = ForkingPickler.dumps(("raised", traceback.format_exc()))
        connection.send_bytes(reply)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
