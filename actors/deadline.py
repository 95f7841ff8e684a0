"""Calls a function in a child process and kills the child when a call takes too long.

In: the import path of a function, then calls of it. Out: what it returns, or `DeadlineExceeded`, `ChildDied` or
`CallFailed`. Only a kill from outside stops long work in C (big integers, for one), so a deadline inside the process,
by signal or by thread, would not hold.
"""

import contextlib
import fcntl
import importlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from orchestrator.errors import ConfigError

START_TIMEOUT_S = 120.0
"""How long a child may take for its imports and warm-up call: generous, since many may start at once on a busy machine."""


class DeadlineExceeded(Exception):
    """The call took longer than its deadline; its process was killed."""


class ChildDied(Exception):
    """The process died during the call (exit, crash, out of memory); another one has taken its place."""


class CallFailed(Exception):
    """The function raised; the message is the child's traceback."""


def load_function(import_path: str) -> Callable[..., Any]:
    """The function at `package.module:function`; raises ConfigError that says which part of the path is wrong."""
    module_name, _, function_name = import_path.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"'{import_path}' is no import path: write it as package.module:function")
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

    The deadline of a call counts from its start in the child, not from queueing for the child nor from the child's
    imports. Safe to call from several threads: calls wait for one another.
    """

    def __init__(self, function: str, timeout_s: float, warm_up: tuple[Any, ...] | None = None):
        """Starts the child and waits until it is warm.

        `warm_up` holds the arguments of a first call outside any deadline, whose outcome is ignored: it pays for lazy
        imports and caches. Raises ConfigError when the function cannot be imported or the child does not start.
        """
        self.restarts = 0
        self._function = function
        self._timeout_s = timeout_s
        self._warm_up = warm_up
        self._lock = threading.Lock()
        self._start()
        self._await_ready()

    def call(self, *args: Any) -> Any:
        """`function(*args)`; raises DeadlineExceeded, ChildDied or CallFailed. All three leave the executor usable."""
        with self._lock:
            if (
                self._process.poll() is not None
            ):  # it died between two calls, for which this call is not to blame
                self._restart()
            if not self._ready:
                self._await_ready()
            try:
                self._connection.send(args)
                self._connection.recv()  # "started"
                if not self._connection.poll(self._timeout_s):
                    self._restart()
                    raise DeadlineExceeded(f"took longer than {self._timeout_s:g} s")
                outcome, value = self._connection.recv()
            except (EOFError, OSError):
                raise ChildDied(f"the process {self._restart()} during the call") from None
        if outcome == "raised":
            raise CallFailed(value)
        return value

    def close(self) -> None:
        """Kills the child; the executor cannot be used afterwards."""
        with self._lock:
            self._kill()

    def _start(self) -> None:
        self._connection, child_connection = Pipe()
        lifeline, self._lifeline = os.pipe()
        inherited = (child_connection.fileno(), lifeline)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, inherited)],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # its own process group, so that a kill also reaches what the function has started
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        child_connection.close()
        os.close(lifeline)
        self._ready = False
        self._connection.send((self._function, self._warm_up))

    def _await_ready(self) -> None:
        try:
            if not self._connection.poll(START_TIMEOUT_S):
                self._kill()
                raise ConfigError(
                    f"'{self._function}' was not imported and warm within {START_TIMEOUT_S:g} s"
                )
            problem = self._connection.recv()
        except (EOFError, OSError):
            raise ConfigError(
                f"'{self._function}': its process {self._kill()} while it started; see its output above"
            ) from None
        if problem is not None:
            self._kill()
            raise ConfigError(problem)
        self._ready = True

    def _restart(self) -> str:
        """Replaces the child without waiting for its imports; says how the old one ended."""
        ending = self._kill()
        self.restarts += 1
        self._start()
        return ending

    def _kill(self) -> str:
        """Kills the child's process group; says how the child ended, by this or before by its own cause."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        if not self._connection.closed:
            self._connection.close()
            os.close(self._lifeline)
        return (
            f"exited with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
        )


def _serve(connection: Connection, lifeline: int) -> None:
    """The child: loads the function, then answers calls until the parent closes the connection or is gone."""
    # SIGIO, which ends a process by default, arrives when the parent's end of the lifeline closes: the kernel delivers it
    # in the middle of C code too, and, unlike a parent-death signal, does not depend on which thread started the child.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
    import_path, warm_up = connection.recv()
    try:
        function = load_function(import_path)
    except ConfigError as error:
        connection.send(str(error))
        return
    if warm_up is not None:
        with contextlib.suppress(Exception):
            function(*warm_up)
    connection.send(None)
    while True:
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
