"""How many CPUs and how much memory of the machine this process may use."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

GIB = 2**30

RAY_THRESHOLD = 0.95
"""Ray's default: it ends actors while more than this share of a node's memory is in use."""


@dataclass(frozen=True)
class MainMemory:
    """Bytes of main memory, of the machine or of the control group that limits this process."""

    total: int
    available: int
    """What programs can still allocate."""

    @property
    def for_run(self) -> int:
        """What a run can take before Ray's memory monitor ends one of its actors."""
        threshold = float(os.environ.get("RAY_memory_usage_threshold", RAY_THRESHOLD))  # noqa: SIM112
        return max(0, self.available - int((1 - threshold) * self.total))


def main_memory(root: Path = Path("/")) -> MainMemory:
    """This machine's memory, within a container's limit.

    Args:
        root: The folder with `proc/meminfo` and `sys/fs/cgroup`.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        total, available = (1024 * int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError):  # not Linux
        available = total
    try:
        group = root / "sys/fs/cgroup"
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return MainMemory(total, available)
    return MainMemory(min(total, limit), min(available, limit - used))


def usable_cpus(root: Path = Path("/")) -> int:
    """The CPUs of this process: the number in its affinity, limited by the quotas of its control groups.

    A quota of 2.5 CPUs counts as 2; a quota below 1 counts as 1.

    Args:
        root: The folder with `proc/self/cgroup` and `sys/fs/cgroup`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Every quota that limits this process, in CPUs: of its control group and of all groups above it."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = {controllers, "cpu"} if controllers else {""}
        # Inside a container the mount's root is the container's group, but version 1 gives the group's path
        # on the host. So look at every level, from that path up to the root.
        group = PurePosixPath(path.lstrip("/"))
        for mount, ancestor in itertools.product(mounts, (group, *group.parents)):
            quota = _quota(root / "sys/fs/cgroup" / mount / ancestor)
            if quota is not None:
                yield quota


def _quota(folder: Path) -> float | None:
    """The quota of one control group (version 2 or 1) in CPUs; None when it has no quota."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or "max"
        return None
