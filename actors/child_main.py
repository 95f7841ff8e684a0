"""What a child process does: it imports a function, warms it up and answers calls of it.

In: the import path of a function, then the arguments of calls. Out: what each call returned or raised. The
process dies with its parent, whose part is `actors/child.py`.
"""

import contextlib
import fcntl
import importlib
import inspect
import os
import resource
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError

WHOLE_BYTES = 16_000
"""A message of at most so many bytes is there as a whole or not at all. A longer one may stop half-way."""


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
    for descriptor in (connection.fileno(), lifeline):
        os.set_inheritable(descriptor, False)  # what the function starts may outlive it
    opened = _opened()
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
        connection.send((str(error), False))
        return None
    connection.send((None, _can_be_copied(opened)))
    return function


def _opened() -> set[str]:
    """What this process has open, but devices."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {name for name in found if not name.startswith("/dev/")}


def _can_be_copied(opened: set[str]) -> bool:
    """Whether a fork has all that this process has, and shares nothing that its use changes.

    Args:
        opened: What the process had open at its start. A connection, a file or a process that the function
            has opened since then belongs to one process.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return len(os.listdir("/proc/self/task")) == 1 and _opened() <= opened
    return False


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
    memory = bytes(ForkingPickler.dumps(("memory", None)))  # now, as there will be no room for it
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            try:
                reply = _outcome(function, connection.recv())
                if len(reply) > WHOLE_BYTES:
                    connection.send(("long", len(reply)))
            except MemoryError:
                reply = memory
            connection.send_bytes(reply)


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The message of what a call returned or raised.

    Raises:
        MemoryError: There was no room for it.
    """
    try:
        return ForkingPickler.dumps(("returned", function(*args)))
    except MemoryError:
        raise
    except Exception:
        return ForkingPickler.dumps(("raised", traceback.format_exc()))


def _serve(connection: Connection, lifeline: int) -> None:
    """The child's main function."""
    function = started_function(connection, lifeline)
    if function is not None:
        answer_calls(connection, function)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
