"""Watches a command and the machine: the cores and the memory of its processes, and who else was busy.

In: a command's process. Out: figures of any stretch of time, and the peak of its memory.
"""

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """Sums since the start, at one moment."""

    time: float
    """Seconds since 1970."""
    machine: float
    """Seconds in which any process kept a core busy."""
    own: float
    """The same of the command's processes."""


class Observer:
    """Samples a command's processes from now on, in a thread, until `stop`.

    Args:
        pid: Of the command; its descendants count too.
    """

    def __init__(self, pid: int, every_s: float = 0.2) -> None:
        self.samples: list[Sample] = []
        self.peak = 0
        """Largest sum of the processes' anonymous memory and of the shared memory, in bytes."""
        self._root = psutil.Process(pid)
        self._seconds: dict[int, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(every_s,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._stopped.set()
        self._thread.join()

    def cores(self, start: float, end: float) -> tuple[float, float]:
        """Cores that the command used from `start` to `end`, and cores that all other processes used."""
        inside = [sample for sample in self.samples if start <= sample.time <= end]
        if len(inside) < 2:
            return 0.0, 0.0
        first, last = inside[0], inside[-1]
        seconds = last.time - first.time
        own, machine = (last.own - first.own) / seconds, (last.machine - first.machine) / seconds
        return own, max(0.0, machine - own)

    def _run(self, every_s: float) -> None:
        while not self._stopped.wait(every_s):
            memory, shared = 0, 0
            for process in self._processes():
                seconds, anonymous, mapped = _usage(process.pid)
                # An ended process keeps the seconds that it had used.
                self._seconds[process.pid] = max(seconds, self._seconds.get(process.pid, 0.0))
                memory += anonymous
                shared = max(shared, mapped)  # the object store, which several processes map
            self.peak = max(self.peak, memory + shared)
            self.samples.append(Sample(time.time(), _machine_seconds(), sum(self._seconds.values())))

    def _processes(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _usage(pid: int) -> tuple[float, int, int]:
    """Seconds of a process on cores, bytes of its anonymous and of its shared memory; 0 once it has ended."""
    seconds, anonymous, shared = 0.0, 0, 0
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / TICKS
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "RssAnon":
                anonymous = 1024 * int(value.split()[0])
            elif name == "RssShmem":
                shared = 1024 * int(value.split()[0])
    return seconds, anonymous, shared


def _machine_seconds() -> float:
    with open("/proc/stat", encoding="ascii") as file:
        values = [int(value) for value in file.readline().split()[1:]]
    return (sum(values[:3]) + sum(values[5:8])) / TICKS
