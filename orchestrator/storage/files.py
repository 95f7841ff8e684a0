"""Files that processes share: atomic writes, locks, leases, and JSON that may be damaged.

The operating system releases a lock or a lease when its process ends, also when it is killed.
"""

import contextlib
import fcntl
import glob
import json
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from orchestrator.errors import ConfigError, LockError

J = TypeVar("J")
"""A type of JSON values."""

LOCK_TIMEOUT_S = 600.0
"""How long another process may hold a lock that both need for a short time."""


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Replace `path` in one step. Yields another path, which is renamed to `path` when the block ends.

    A reader sees the old file or the new one, even if the process is killed or the power is cut: the new one
    is on the disk before it is renamed. If the block raises, the old file stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        if not partial.is_symlink():
            flush_to_disk(partial)
        partial.replace(path)
        flush_to_disk(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a text (as UTF-8) or bytes to a file `atomically`."""
    with atomically(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def flush_to_disk(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk, so that they outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_record(path: Path, kind: type[J], advice: str) -> J:
    """The JSON value in a file that a command of ours wrote.

    Args:
        kind: The type of the value, such as `dict`.
        advice: What to do when the file is damaged, for the message.

    Raises:
        ConfigError: The file cannot be read, is not JSON, or holds another type.
    """
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, kind):
            raise ValueError(f"it holds {type(value).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is damaged and cannot be read ({error}). {advice}") from error
    return value


@cache
def without_patterns(path: str) -> str:
    """The path itself, or a link to it where the path is also a pattern of file names.

    vLLM and DeepSpeed look for weights by such patterns, and so miss the files below a folder `runs[1]`, and
    read those of `runs1` for `runs?`. The link lies in a folder of this process, and ends with it.
    """
    if glob.escape(path) == path or not os.path.isabs(path):
        return path
    link = os.path.join(_links().name, str(len(os.listdir(_links().name))))
    os.symlink(path, link)
    return link


@cache
def _links() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="laser-links-")


@contextlib.contextmanager
def locked(path: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock file `path`, which has one holder at a time. The file stays on the disk.

    Args:
        timeout_s: How many seconds to wait for another holder.

    Raises:
        LockError: Another holder kept it.
        OSError: The file cannot be opened, or its file system has no locks.
    """
    # Where the file system has no `flock`, the library would use a file that outlives a killed process.
    try:
        held = FileLock(path, fallback_to_soft=False).acquire(timeout_s)
    except Timeout:
        raise LockError(
            f"{path}: another process has held this lock for {timeout_s:g} s. `fuser {path}` names it on its "
            "machine. Wait for its end, or end it if it hangs; the lock ends with it"
        ) from None
    with held:
        yield


@contextlib.contextmanager
def claimed(
    folder: Path, patience_s: float = 0.0, work: str = "training this run", key: str = "run.name"
) -> Iterator[None]:
    """Hold a folder for this process alone.

    Args:
        patience_s: How many seconds to wait for another process to release it.
        work: What the other process does, for the message.
        key: The setting that names the folder, for the message.

    Raises:
        ConfigError: Another process holds the folder.
    """
    with contextlib.ExitStack() as claim:
        try:
            claim.enter_context(locked(folder / ".lock", patience_s))
        except LockError:
            raise ConfigError(
                f"{folder}: another process is {work}; wait for it, stop it, or choose another {key}"
            ) from None
        yield


@contextlib.contextmanager
def leased(file: Path) -> Iterator[None]:
    """Hold a lease on `file` while the block runs. Any number of processes may hold one at a time.

    An owner that asks `lease_free` does not delete a leased file. A lease is a shared lock on the file
    itself: it needs no permission to write and leaves nothing behind. filelock has no such lock. On a file
    system without locks there is no lease, and no error.

    Raises:
        FileNotFoundError: The file does not exist, or is being deleted.
    """
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileNotFoundError(f"{file} is being deleted") from None
        except OSError:
            pass  # this file system has no locks
        if not os.path.samestat(os.fstat(opened.fileno()), file.stat()):
            raise FileNotFoundError(f"{file} was replaced")
        yield


@contextlib.contextmanager
def lease_free(file: Path) -> Iterator[bool]:
    """Yields whether no process holds a lease on `file`. If so, none can obtain one while the block runs.

    A missing file is free.
    """
    free = True
    with contextlib.ExitStack() as stack:
        try:
            fcntl.flock(stack.enter_context(file.open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass  # no such file, or a file system without locks
        yield free
