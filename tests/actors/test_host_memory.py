"""Freed memory goes back to the kernel, also from between live blocks. Each case runs in a fresh process."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys

from actors.host_memory import keep_freed_blocks, return_free_memory, return_large_blocks


def used():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("RssAnon"))


def leave_holes(size):
    blocks = [bytes(b"1") * size for _ in range(200 * 2**20 // size)]
    return blocks[::20]  # live blocks between the freed ones


if sys.argv[1] == "trim":
    kept = leave_holes(100_000)
    held = used()
    return_free_memory()
    print(held, used())
else:
    if sys.argv[1] == "large":
        return_large_blocks()
    if sys.argv[1] == "keep":
        keep_freed_blocks()
    bytearray(30 * 2**20)  # glibc learns from it that blocks of this size come and go
    kept = leave_holes(2**21)
    print(used())
"""


def mebibytes(case: str) -> list[int]:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, case], capture_output=True, text=True, timeout=60, check=True
    )
    return [int(number) for number in ended.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and asks glibc")
def test_free_memory_between_live_blocks_is_returned_when_asked_for():
    held, left = mebibytes("trim")
    assert held > 150
    assert left < 60


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and asks glibc")
def test_large_blocks_are_returned_as_they_are_freed():
    [kept_back] = mebibytes("default")
    [returned] = mebibytes("large")
    assert kept_back > 150
    assert returned < 60


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and asks glibc")
def test_freed_blocks_are_kept_when_asked_for():
    [kept_back] = mebibytes("keep")
    assert kept_back > 150
