"""Calls a function in a child process and kills the child when a call takes too long.

In: the import path of a function, then calls of it. Out: what it returns, or `DeadlineExceeded`, `ChildDied`
or `CallFailed`. Only a kill from outside stops long work in C, such as on big integers. A deadline inside the
process, by signal or by thread, would not hold.
"""

import contextlib
import fcntl
import importlib
import inspect
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from orchestrator.errors import ConfigError

CHILD_START_TIMEOUT_S = 120.0
"""Seconds for a child's imports and warm-up call. Many may start at once on a busy machine, so it is long."""


class DeadlineExceeded(Exception):
    """The call took longer than its deadline, and its process was killed."""


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

    A call's deadline counts from its start in the child: neither the wait for the child nor the child's
    imports count, which have `CHILD_START_TIMEOUT_S` of their own. Several threads may call it; their calls
    wait for one another.

    Args:
        function: Import path of the function.
        timeout_s: Seconds that a call may take.
        warm_up: Arguments of a first call without a deadline, which pays for lazy imports. Its outcome is
            ignored, unless it is a `ConfigError`.

    Attributes:
        restarts: How many children have been replaced.

    Raises:
        ConfigError: The function cannot be imported, or the child did not start.
    """

    def __init__(self, function: str, timeout_s: float, warm_up: tuple[Any, ...] | None = None) -> None:
        self.restarts = 0
        self._function = function
        self._timeout_s = timeout_s
        self._warm_up = warm_up
        self._lock = threading.Lock()
        self._child = ChildProcess(function, warm_up)
        self._child.wait_ready()

    def call(self, *args: Any, timeout_s: float | None = None) -> Any:
        """The value of `function(*args)`. The executor can be used after an error too.

        Args:
            timeout_s: Of this call; the executor's unless given.

        Raises:
            DeadlineExceeded: The call took longer than the deadline.
            ChildDied: The child died during the call.
            CallFailed: The function raised, or its value cannot be pickled.
            ConfigError: A replaced child did not start.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        with self._lock:
            if self._child.process.poll() is not None:
                self._restart()  # the child died between two calls, so this one need not fail
            self._child.wait_ready()
            connection = self._child.connection
            try:
                connection.send(args)
                if not connection.poll(CHILD_START_TIMEOUT_S):
                    self._restart()
                    raise DeadlineExceeded(f"did not start within {CHILD_START_TIMEOUT_S:g} s")
                connection.recv()  # "started"
                if not connection.poll(timeout_s):
                    self._restart()
                    raise DeadlineExceeded(f"took longer than {timeout_s:g} s")
                outcome, value = connection.recv()
            except (EOFError, OSError):
                raise ChildDied(f"the process {self._restart()} during the call") from None
        if outcome == "raised":
            raise CallFailed(value)
        return value

    def close(self) -> None:
        """Kill the child. The executor cannot be used afterwards."""
        with self._lock:
            self._child.kill()

    def _restart(self) -> str:
        """Replace the child, without waiting for its imports; returns how the old one ended."""
        ending = self._child.kill()
        self.restarts += 1
        self._child = ChildProcess(self._function, self._warm_up)
        return ending


class ChildProcess:
    """A child process that imports the function and then answers calls; `wait_ready` waits for the import.

    Args:
        function: Import path of the function.
        warm_up: Arguments of a first call, whose outcome is ignored.
        module: Runs in the child, as `python -m`.
        variables: Environment variables of the child, beside the parent's.
    """

    def __init__(
        self,
        function: str,
        warm_up: tuple[Any, ...] | None,
        module: str = __name__,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.function = function
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
        self.connection.send((function, warm_up))

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
    import_path, warm_up = connection.recv()
    try:
        function = load_function(import_path)
        if warm_up is not None:
            _warm(function, warm_up)
    except ConfigError as error:
        connection.send(str(error))
        return None
    connection.send(None)
    return function


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
        connection.send("started")
        try:
            reply = ForkingPickler.dumps(("returned", function(*args)))
        except Exception:
            reply = ForkingPickler.dumps(("raised", traceback.format_exc()))
        connection.send_bytes(reply)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
