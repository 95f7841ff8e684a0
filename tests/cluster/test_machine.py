"""How many CPUs and how much memory a process may use: by affinity, and by control groups."""

import os
import subprocess
import sys

import pytest

from orchestrator.cluster.machine import GIB, main_memory, usable_cpus

CPUS = len(os.sched_getaffinity(0))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 64 CPUs and these files: `{path: text}`."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))

    def make(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 64),
        # Version 2, in a container: the container's group is the root.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "12800000 100000\n"}, 64),
        # Version 2 on a host: the smallest quota of the process's group and those above it.
        (
            {
                "proc/self/cgroup": "0::/user.slice/job.scope\n",
                "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000\n",
            },
            3,
        ),
        # Version 1 gives the group's path on the host, which does not exist in a container.
        (
            {
                "proc/self/cgroup": "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/system.slice\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpuacct,cpu:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
        (
            {
                "proc/self/cgroup": "4:cpuacct,cpu:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "50000\n",
            },
            3,
        ),
    ],
)
def test_quotas_of_control_groups_count(machine, files, cpus):
    assert usable_cpus(machine(files)) == cpus


def test_an_affinity_below_the_quota_counts(machine, monkeypatch):
    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "800000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert usable_cpus(root) == 2


@pytest.mark.skipif(CPUS < 2, reason="a process of one CPU cannot be held to fewer")
def test_the_cluster_and_the_doctor_count_the_cpus_of_this_process():
    code = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
        "from orchestrator.cluster.nodes import local_nodes\n"
        "from orchestrator.planning.doctor import check_cores\n"
        "print(local_nodes()[0]['CPU'], check_cores().text)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("1.0 1; ")


def memory_folder(root, limit, used=3 * GIB):
    """A /proc and /sys of a machine of 16 GiB, 12 of them available, and a control group."""
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemAvailable: {12 * 2**20} kB\n")
    if limit is not None:
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (root / "sys/fs/cgroup/memory.current").write_text(f"{used}\n")
    return root


@pytest.mark.parametrize(
    ("limit", "total", "available"),
    [(None, 16, 12), ("max", 16, 12), (8 * GIB, 8, 5), (64 * GIB, 16, 12)],
)
def test_memory_is_the_machines_within_the_containers_limit(tmp_path, limit, total, available):
    memory = main_memory(memory_folder(tmp_path, limit))
    assert (memory.total, memory.available) == (total * GIB, available * GIB)


def test_without_proc_all_memory_counts_as_available(tmp_path):
    memory = main_memory(tmp_path)
    assert memory.available == memory.total > 0
