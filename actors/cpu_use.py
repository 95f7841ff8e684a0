"""What Linux says of processes: whether they want a core, and how many seconds of one they have used.

In: a process id. Out: the state and the CPU seconds of the process, or of its whole process group.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessUse:
    """What proc(5) says of a process."""

    pid: int
    state: str
    group: int
    used_s: float
    """CPU seconds that it has used, with its children that have ended."""

    @property
    def wants_a_core(self) -> bool:
        """Whether one of its threads would run if it had a core."""
        for thread in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                if _fields(thread)[0] in "RD":
                    return True
        return False


def _fields(stat: Path) -> list[str]:
    """The fields of a file `stat` of proc(5), from the third on."""
    return stat.read_text().rpartition(")")[2].split()


def process_use(pid: int) -> ProcessUse:
    """Of one process.

    Raises:
        OSError: There is none.
    """
    fields = _fields(Path(f"/proc/{pid}/stat"))
    ticks = sum(map(int, fields[11:15]))
    return ProcessUse(pid, fields[0], int(fields[2]), ticks / os.sysconf("SC_CLK_TCK"))


def group_use(leader: int) -> list[ProcessUse]:
    """The processes of a process group that have not been waited for."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                found.append(process_use(int(name)))
    return [process for process in found if process.group == leader]
