"""Files that processes share: atomic writes, and locks that the system releases when their process ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.errors import ConfigError


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Replace `path` in one step: the block writes to the path it is given, which becomes `path` when the block ends.

    A reader sees the old file or the new one, also when the process is killed. If the block raises, the old file stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a text (as UTF-8) or bytes to a file `atomically`."""
    with atomically(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float = -1.0) -> Iterator[None]:
    """Hold the lock file `path`, which one holder at a time can; it stays on the disk.

    Args:
        timeout_s: How long to wait for another holder; without a limit when negative.

    Raises:
        filelock.Timeout: Another holder kept it.
        OSError: The file cannot be opened, or its file system has no locks.
    """
    # The library's substitute for a missing `flock` would survive its process.
    with FileLock(path, timeout_s, fallback_to_soft=False):
        yield


@contextlib.contextmanager
def claimed(
    folder: Path, patience_s: float = 0.0, work: str = "training this run", key: str = "run.name"
) -> Iterator[None]:
    """Hold a folder for this process alone.

    Args:
        patience_s: How long to wait for another process to release it.
        work: What that process does, for the message.
        key: The setting that names the folder, for the message.

    Raises:
        ConfigError: Another process holds the folder.
    """
    with contextlib.ExitStack() as claim:
        try:
            claim.enter_context(locked(folder / ".lock", patience_s))
        except Timeout:
            raise ConfigError(
                f"{folder}: another process is {work}; wait for it, stop it, or choose another {key}"
            ) from None
        yield


@contextlib.contextmanager
def leased(file: Path) -> Iterator[None]:
    """Keep the owner of `file`, if it asks `lease_free`, from deleting it while the block runs. Any number of processes may.

    A lease is a shared lock on the file itself: it needs no right to write, leaves nothing behind, and ends with its
    process. filelock has no such lock. Where the file system has no locks there is no lease, and no error.

    Raises:
        FileNotFoundError: The file does not exist, or is being deleted.
    """
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileNotFoundError(f"{file} is being deleted") from None
        except OSError:
            pass  # no locks here
        if not os.path.samestat(os.fstat(opened.fileno()), file.stat()):
            raise FileNotFoundError(f"{file} was replaced")
        yield


@contextlib.contextmanager
def lease_free(file: Path) -> Iterator[bool]:
    """Whether nobody has `leased` the file; if so, nobody can while the block runs. A missing file is free."""
    free = True
    with contextlib.ExitStack() as stack:
        try:
            fcntl.flock(stack.enter_context(file.open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass  # no file, or no locks here
        yield free
