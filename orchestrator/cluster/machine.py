"""What this process may use of the machine that it runs on."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GIB = 2**30


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: those of its affinity, and no more than its control group's quota, rounded down.

    At least 1, also where the quota is a fraction of a CPU.

    Args:
        root: Holds `proc/self/cgroup` and `sys/fs/cgroup`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas that hold for this process, in CPUs, those of the groups around its own included."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = {controllers, "cpu"} if controllers else {""}
        # A container sees its own group as the mount's root, but version 1 names it by its path on the host.
        group = PurePosixPath(path.lstrip("/"))
        for mount, ancestor in itertools.product(mounts, (group, *group.parents)):
            quota = _quota(root / "sys/fs/cgroup" / mount / ancestor)
            if quota is not None:
                yield quota


def _quota(folder: Path) -> float | None:
    """The quota of one control group (version 2 or 1); None where it has none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or "max"
        return None
