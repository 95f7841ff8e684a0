"""What one worker may spend on a judge: requests and tokens, counted in a small file.

In: a share of a run's limits. Out: whether a request may be made. The file outlives the child process and the
worker, so a replaced one goes on with the count.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SHARE_VARIABLE = "LASER_JUDGE_BUDGET"
"""Environment variable of a child with its worker's share: `index:workers:folder`."""

_COUNTS = struct.Struct("<qq")


@dataclass(frozen=True)
class BudgetShare:
    """Which part of a run's limits a worker has, and where it counts."""

    folder: Path
    """A folder of this run on the worker's node."""
    index: int = 0
    """Of the worker, from 0."""
    workers: int = 1

    def part_of(self, limit: int | None) -> int | None:
        """This worker's part of a limit; the parts add up to the limit."""
        if limit is None:
            return None
        return limit // self.workers + (self.index < limit % self.workers)

    def text(self) -> str:
        """As the environment variable has it."""
        return f"{self.index}:{self.workers}:{self.folder}"

    @staticmethod
    def from_text(text: str) -> "BudgetShare":
        """The share that `text` wrote."""
        index, workers, folder = text.split(":", 2)
        return BudgetShare(Path(folder), int(index), int(workers))


class JudgeBudget:
    """The counts of one judge in one worker.

    Args:
        path: The file; made where it is missing.
        max_requests: Requests that may be made; None sets no limit.
        max_tokens: Tokens that may be spent; None sets no limit.
    """

    def __init__(self, path: Path, max_requests: int | None, max_tokens: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.max_requests = max_requests
        self.max_tokens = max_tokens

    def take(self, tokens: int) -> str | None:
        """Count one request that may cost `tokens`; None, or why it may not be made."""
        with self._counts() as counts:
            if self.max_requests is not None and counts[0] + 1 > self.max_requests:
                return f"its budget of {self.max_requests} requests is spent"
            if self.max_tokens is not None and counts[1] + tokens > self.max_tokens:
                return f"its budget of {self.max_tokens} tokens leaves no room for {tokens} more"
            counts[0] += 1
            counts[1] += tokens
        return None

    def correct(self, taken: int, used: int) -> None:
        """Replace the tokens that a request might have cost by those that it did."""
        with self._counts() as counts:
            counts[1] += used - taken

    def spent(self) -> tuple[int, int]:
        """Requests and tokens so far."""
        with self._counts() as counts:
            return counts[0], counts[1]

    @contextmanager
    def _counts(self) -> Iterator[list[int]]:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            data = os.pread(descriptor, _COUNTS.size, 0)
            counts = list(_COUNTS.unpack(data)) if len(data) == _COUNTS.size else [0, 0]
            before = list(counts)
            yield counts
            if counts != before:
                os.pwrite(descriptor, _COUNTS.pack(*counts), 0)
        finally:
            os.close(descriptor)
