"""Runs many calls of an `async` function at a time in one child process, each under a deadline of its own.

In: the import path of a function, then calls of it. Out: a future for each call. A call past its deadline is
cancelled. If that fails, the child is killed and the other calls are tried again.
"""

import asyncio
import contextlib
import inspect
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from actors.child import ChildProcess
from actors.child_main import started_function
from actors.deadline import CallFailed, ChildDied, DeadlineExceeded
from orchestrator.errors import ConfigError

GRACE_S = 1.0
"""Seconds that a cancelled call may take to end, and the child to accept a call."""


@dataclass(eq=False)
class _Call:
    args: tuple[Any, ...]
    timeout_s: float
    future: "Future[Any]" = field(default_factory=Future)
    deadline: float = 0.0
    cancelled_at: float | None = None
    acknowledged: bool = False
    """Whether the child has said that it cancels the call, and so is not blocked."""


class ConcurrentExecutor:
    """One child process that runs an `async` function, many calls at a time.

    Which call blocked or killed the child is not known while several run. All of them are then suspects, and
    run again one by one, so that only the guilty one fails.

    Args:
        function: Import path of a function that returns an awaitable.
        in_flight: Calls at a time; the others wait.
        warm_up: Arguments of a first call, which is not awaited. It pays for lazy imports.
        variables: Environment variables of the child.

    Attributes:
        restarts: How many children have been replaced.

    Raises:
        ConfigError: The function cannot be imported, or the child did not start.
    """

    def __init__(
        self,
        function: str,
        in_flight: int,
        warm_up: tuple[Any, ...] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.restarts = 0
        self._start = lambda: ChildProcess(function, warm_up, __name__, variables)
        self._in_flight = in_flight
        self._waiting: deque[_Call] = deque()
        self._suspects: deque[_Call] = deque()
        self._running: dict[int, _Call] = {}
        self._number = 0
        self._closed = False
        self._lock = threading.Lock()
        self._child = self._start()
        self._child.wait_ready()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._supervise, name="checks", daemon=True)
        self._thread.start()

    def submit(self, *args: Any, timeout_s: float) -> "Future[Any]":
        """Queue a call; the future gives its value, or raises as `DeadlineExecutor.call` does.

        Args:
            timeout_s: Seconds that the call may take from its start in the child.
        """
        call = _Call(args, timeout_s)
        with self._lock:
            if self._closed:
                raise RuntimeError("the executor is closed")
            self._waiting.append(call)
            os.write(self._wake_write, b"x")
        return call.future

    def close(self) -> None:
        """Kill the child; calls that have not ended fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.write(self._wake_write, b"x")
        self._thread.join()
        self._child.kill()
        self._fail_all(ChildDied("the process was closed before the call ended"))
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _supervise(self) -> None:
        while not self._closed:
            try:
                self._dispatch()
                ready = wait([self._child.connection, self._wake_read], self._patience())
                if self._wake_read in ready:
                    os.read(self._wake_read, 65536)
                if self._child.connection in ready:
                    self._receive()
                self._expire()
            except (EOFError, OSError):
                self._lost()
            except ConfigError as error:  # a replaced child did not start
                self._fail_all(error)

    def _dispatch(self) -> None:
        """Start calls: suspects one by one, the others up to `in_flight`."""
        if self._child.process.poll() is not None and not self._running:
            self._restart()
        while not (self._suspects and self._running) and len(self._running) < self._in_flight:
            with self._lock:
                queue = self._suspects or self._waiting
                if not queue:
                    return
                call = queue.popleft()
                alone = queue is self._suspects
            self._child.wait_ready()
            self._number += 1
            call.deadline, call.cancelled_at = time.monotonic() + call.timeout_s, None
            call.acknowledged = False
            self._running[self._number] = call
            try:
                self._send((self._number, call.args))
            except (TypeError, AttributeError, ValueError) as error:  # it cannot be pickled
                self._end(self._number, CallFailed(f"its arguments cannot be sent: {error}"))
            if alone:
                return

    def _send(self, message: tuple[int, tuple[Any, ...] | None]) -> None:
        """Send to the child, which is killed where it does not read."""
        process = self._child.process
        watchdog = threading.Timer(GRACE_S + 5.0, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._child.connection.send(message)
        finally:
            watchdog.cancel()

    def _patience(self) -> float | None:
        """Seconds until the next deadline."""
        moments = [
            call.deadline if call.cancelled_at is None else call.cancelled_at + GRACE_S
            for call in self._running.values()
        ]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _receive(self) -> None:
        kind, number, value = self._child.connection.recv()
        call = self._running.get(number)
        if call is None:
            return
        if kind == "cancelling":
            call.acknowledged = True
        elif kind == "returned":
            self._end(number, value)
        elif call.cancelled_at is not None:
            self._end(number, DeadlineExceeded(f"took longer than {call.timeout_s:g} s"))
        else:
            self._end(number, CallFailed(value))

    def _end(self, number: int, outcome: Any) -> None:
        call = self._running.pop(number)
        if isinstance(outcome, Exception):
            call.future.set_exception(outcome)
        else:
            call.future.set_result(outcome)

    def _expire(self) -> None:
        """Cancel calls past their deadline; kill the child where one does not end."""
        now = time.monotonic()
        for number, call in list(self._running.items()):
            if call.cancelled_at is None:
                if now >= call.deadline:
                    call.cancelled_at = now
                    self._send((number, None))
            elif now >= call.cancelled_at + GRACE_S:
                self._restart()
                if call.acknowledged or len(self._running) == 1:
                    self._end(number, DeadlineExceeded(f"took longer than {call.timeout_s:g} s"))
                    # The child is not blocked, so none of the others is suspect.
                    self._waiting.extendleft(reversed(self._running.values()))
                else:
                    self._suspects.extend(self._running.values())
                self._running.clear()
                return

    def _lost(self) -> None:
        """The child died."""
        ending = self._restart()
        if len(self._running) == 1:
            self._end(next(iter(self._running)), ChildDied(f"the process {ending} during the call"))
        self._suspects.extend(self._running.values())
        self._running.clear()

    def _restart(self) -> str:
        ending = self._child.kill()
        self.restarts += 1
        self._child = self._start()
        return ending

    def _fail_all(self, error: Exception) -> None:
        with self._lock:
            calls = [*self._running.values(), *self._suspects, *self._waiting]
            self._running.clear()
            self._suspects.clear()
            self._waiting.clear()
        for call in calls:
            call.future.set_exception(error)


async def _work(connection: Connection, function: Any) -> None:
    """Answer calls until the parent closes the connection; a message without arguments cancels a call."""
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Any]()
    tasks: dict[int, asyncio.Task[None]] = {}

    def read() -> None:
        # A thread of its own: the parent can always send, even while the loop is blocked.
        try:
            while True:
                loop.call_soon_threadsafe(inbox.put_nowait, connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    async def run(number: int, args: tuple[Any, ...]) -> None:
        try:
            value = function(*args)
            reply = ("returned", number, await value if inspect.isawaitable(value) else value)
        except asyncio.CancelledError:
            reply = ("cancelled", number, "the verifier cancelled itself")
        except Exception:
            reply = ("raised", number, traceback.format_exc())
        tasks.pop(number, None)
        try:
            data = ForkingPickler.dumps(reply)
        except Exception:
            data = ForkingPickler.dumps(("raised", number, traceback.format_exc()))
        connection.send_bytes(data)

    threading.Thread(target=read, daemon=True).start()
    while True:
        number, args = await inbox.get()
        if args is not None:
            tasks[number] = asyncio.create_task(run(number, args))
            continue
        connection.send(("cancelling", number, None))
        if number in tasks:
            tasks[number].cancel()


def _serve_async(connection: Connection, lifeline: int) -> None:
    """The child's main function."""
    function = started_function(connection, lifeline)
    if function is not None:
        asyncio.run(_work(connection, function))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, ConnectionError):
        _serve_async(Connection(int(sys.argv[1])), int(sys.argv[2]))
