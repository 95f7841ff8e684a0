"""Keeps freed memory from staying with a process, whose next phase would come on top of it.

glibc's heaps take blocks of up to 32 MiB, once such a block has been freed, and a few live blocks then hold
all the memory between them: 0.8 GiB after a training step of a 0.2B model, and half of that at its peak.
"""

import ctypes
import functools
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of `mallopt`, from malloc.h."""
HEAP_BLOCK = 2**20


def return_large_blocks() -> None:
    """Give every freed block of `HEAP_BLOCK` bytes or more back to the kernel at once, from now on.

    It costs a learner no measurable time. Does nothing without glibc.
    """
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, HEAP_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * HEAP_BLOCK)


def return_free_memory() -> None:
    """Give freed memory of all heaps back to the kernel, in milliseconds. Does nothing without glibc."""
    if libc := _glibc():
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """The C library; None where it is not glibc (macOS, musl)."""
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
        libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    except (AttributeError, OSError):
        return None
    return libc
