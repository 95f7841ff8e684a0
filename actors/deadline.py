"""Calls a function in a child process and kills the child when a call takes too long.

A call that is slow goes on aside with its child, until its own deadline, while another child takes the next
ones.

In: the import path of a function, then calls of it. Out: what it returns, or `DeadlineExceeded`,
`MemoryExceeded`, `ChildDied` or `CallFailed`. Only a kill from outside stops long work in C, such as on big
integers. A deadline inside the process, by signal or by thread, would not hold.
"""

import contextlib
import logging
import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from actors.child import Child
from actors.nursery import Nursery

CALLS_ASIDE = 2
"""Slow calls that one executor leaves alone at a time. Each holds a child, with its memory."""
SLOW_S = 0.1
"""Seconds after which a call is slow, where it is usual that calls are quick."""
SLOW_TIMES = 5.0
"""A call is not slow before it has taken so many times what is usual."""
NICE_ASIDE = 10
"""How much lower the priority of a slow call is, so that on few cores the others keep their share."""
FAULTS_OF_THE_MACHINE = {
    "stopped": "was stopped",
    "starved": "got less than half of a core",
    "lost": "ended with the process that it was copied from",
}
"""Ends of calls that are tried once more, in words."""
_NEWEST = 0.1
"""Weight of the newest call in what is usual."""


class DeadlineExceeded(Exception):
    """The call took longer than its deadline, and its process was killed."""


class MemoryExceeded(Exception):
    """The call asked for more memory than its limit; another process has replaced its own."""


class ChildDied(Exception):
    """The process died during the call (exit, crash, out of memory). Another one has replaced it."""


class CallFailed(Exception):
    """The function raised; the message is the child's traceback."""


@dataclass(eq=False)
class _Call:
    """A call, from the moment that it has been sent to a child."""

    args: tuple[Any, ...]
    timeout_s: float
    child: Child
    future: "Future[Any]" = field(default_factory=Future)
    thread: threading.Thread = field(default_factory=threading.Thread)
    started: float = 0.0
    on_new_child: bool = False

    def send(self) -> None:
        """Send it to its child; now its time counts."""
        self.on_new_child = self.child.is_new
        self.started = time.monotonic()
        self.child.send(self.args, self.timeout_s)

    def left_s(self) -> float:
        """Seconds until its deadline."""
        return self.started + self.timeout_s - time.monotonic()


class DeadlineExecutor:
    """A child process that runs one function, call after call; slow calls are set aside with their child.

    A call's deadline counts from the moment that its arguments are sent to a child that waits for them:
    neither the wait for the child nor the child's imports count. Several threads may call it; their calls
    wait for one another, but not for calls that are aside.

    Args:
        function: Import path of the function.
        timeout_s: Seconds that a call may take.
        warm_up: Arguments of a first call without a deadline, which pays for lazy imports. Its outcome is
            ignored, unless it is a `ConfigError`.
        memory_mib: MiB that a call may take beyond what the warm child holds; without a limit when None.

    Attributes:
        restarts: How many children have been replaced because they died or had to be killed.

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
        self._usual_s = 0.0
        self._aside: set[_Call] = set()
        self._closed = False
        self._turn = threading.Lock()  # of the child that takes calls
        self._lock = threading.Lock()  # of what the threads of slow calls share
        self._nursery = Nursery(function, warm_up, memory_mib)
        try:
            self._child: Child | None = self._nursery.child()
        except BaseException:
            self._nursery.close()
            raise

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
        return self.begin(*args, timeout_s=timeout_s).result()

    def begin(self, *args: Any, timeout_s: float | None = None) -> "Future[Any]":
        """Run a call until it ends or is set aside; the future then gives its value, or raises, as `call`.

        Raises:
            ConfigError: A replaced child did not start.
        """
        with self._turn:
            if self._closed:
                raise RuntimeError("the executor is closed")
            # No other call may find a child that has not answered this one, whatever is raised here.
            child, self._child = self._living_child(), None
            call = _Call(args, self._timeout_s if timeout_s is None else timeout_s, child)
            try:
                call.send()
                if not self._goes_aside(call):
                    reply = self._reply(call)
                    self._child = call.child
                    self._settle(call, reply)
            except BaseException:
                call.child.kill()
                raise
        return call.future

    def close(self) -> None:
        """Kill the children; calls that are aside fail. The executor cannot be used afterwards."""
        with self._turn:
            self._closed = True
            for call in list(self._aside):
                call.child.interrupt()
                call.thread.join()
            if self._child is not None:
                self._child.kill()
            self._nursery.close()

    def _living_child(self) -> Child:
        """The child that takes the next call."""
        if self._child is not None and not self._child.was_killed:
            if not self._child.has_died():
                return self._child
            self._child.kill()  # it died between two calls, so this one need not fail
            self._count_restart()
        return self._nursery.child()

    def _goes_aside(self, call: _Call) -> bool:
        """Wait until the call has its reply or reaches its deadline, or is slow and may go on aside."""
        wait_s = max(SLOW_S, SLOW_TIMES * self._usual_s, self._nursery.child_s)
        while (left_s := call.left_s()) > 0:
            if call.child.replies_within(min(wait_s, left_s)):
                return False
            with self._lock:
                if len(self._aside) < CALLS_ASIDE and self._start_aside(call):
                    return True
            wait_s = SLOW_S  # until then one that is aside may end
        return False

    def _start_aside(self, call: _Call) -> bool:
        """Set the call aside; not where the machine has no more threads."""
        call.thread = threading.Thread(target=self._end_aside, args=(call,), daemon=True)
        try:
            call.thread.start()  # it waits for the lock, which is held here
        except RuntimeError:
            return False
        self._aside.add(call)
        return True

    def _end_aside(self, call: _Call) -> None:
        """Wait for the end of a call that is aside. Its child keeps its low priority, so it goes too."""
        with self._lock:
            call.child.mark()
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PGRP, call.child.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE_ASIDE)
        try:
            self._settle(call, self._reply(call))
        finally:
            call.child.kill()
            with self._lock:
                self._aside.remove(call)

    def _reply(self, call: _Call) -> tuple[str, Any]:
        """How the call ends, as `Child.reply`, or `failed` with an error of this process."""
        try:
            reply = call.child.reply(call.left_s())
            if reply[0] in FAULTS_OF_THE_MACHINE or (reply[0] == "memory" and not call.on_new_child):
                if reply[0] in FAULTS_OF_THE_MACHINE:
                    level = logging.INFO if reply[0] == "starved" else logging.WARNING
                    why = FAULTS_OF_THE_MACHINE[reply[0]]
                    message = "process %d %s; another one does its call again"
                    logging.getLogger(__name__).log(level, message, call.child.pid, why)
                # Former calls leave something in the child's memory: a new one shows whose fault it is.
                # One that is aside gets a core's usual share now.
                self._count_restart()
                call.child = self._nursery.child()
                if self._closed:
                    call.child.interrupt()
                call.send()
                reply = call.child.reply(call.left_s())
        except Exception as error:
            reply = "failed", error
        if call.child.was_killed:
            self._count_restart()
        if reply[0] in ("returned", "raised"):
            with self._lock:
                self._usual_s += _NEWEST * (time.monotonic() - call.started - self._usual_s)
        return reply

    def _count_restart(self) -> None:
        with self._lock:
            self.restarts += 1

    def _settle(self, call: _Call, reply: tuple[str, Any]) -> None:
        """Give the future of an ended call its value or its error."""
        kind, value = reply
        if kind == "returned":
            call.future.set_result(value)
        elif kind == "raised":
            call.future.set_exception(CallFailed(value))
        elif kind == "memory":
            call.future.set_exception(MemoryExceeded(f"took more than {self._memory_mib} MiB of memory"))
        elif kind in ("timeout", "stopped", "starved"):
            call.future.set_exception(DeadlineExceeded(f"took longer than {call.timeout_s:g} s"))
        elif kind in ("died", "lost"):
            call.future.set_exception(ChildDied(f"the process {value} during the call"))
        else:
            call.future.set_exception(value)
