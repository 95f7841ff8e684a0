"""The files of a checkpoint that one learner rank writes or loads: uploaded to `run.remote`, and downloaded.

In: a checkpoint's folder on the rank's node. Out: this rank's files at the URL, or on this node again. A rank
loads the files that it wrote, or those of all ranks where another number of ranks saved the checkpoint.
"""

import contextlib
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from orchestrator.errors import RunError
from orchestrator.storage.checkpoints import DRIVERS_FILES, TrainingState, random_state
from orchestrator.storage.checksums import STATE, Checksums, file_sum, sum_files
from orchestrator.storage.remote import RemoteStorage, place_of


class ShardFiles:
    """One rank's files of its run's checkpoints.

    Args:
        rank: The rank's number, from 0.
        num_ranks: How many ranks there are.
        run_name: Name of the run below `remote`.
        remote: `run.remote`; None when checkpoints stay in the run's folder, and then nothing is uploaded.
    """

    def __init__(self, rank: int, num_ranks: int, run_name: str, remote: str | None) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.run_name = run_name
        self.remote = remote
        self._fetched: Path | None = None

    def seal(self, checkpoint: Path) -> Checksums:
        """Flush this rank's files of a checkpoint to the disk; returns their checksums."""
        paths = [path.relative_to(checkpoint).as_posix() for path in self._own(checkpoint)]
        return sum_files(checkpoint, paths, flush=True)

    def upload(self, checkpoint: Path, place: str) -> None:
        """Copy this rank's files of a checkpoint to `place` below the run's URL.

        On a node whose folder the driver does not share, the files are deleted afterwards, because no later
        save would delete them.

        Raises:
            ConfigError: The URL cannot be opened.
            RunError: It cannot be written to.
        """
        files = self._own(checkpoint)
        try:
            self._storage().upload(files, checkpoint, place)
        finally:
            if not (checkpoint / STATE).exists():
                for path in files:
                    path.unlink()

    def fetch(self, checkpoint: Path, state: TrainingState, node: str) -> None:
        """Download the files of a checkpoint that this rank loads, unless they are in its folder here.

        Args:
            node: Address of this rank's node, for the message.

        Raises:
            ConfigError: The URL cannot be opened.
            RunError: It cannot be read, or it has no such checkpoint.
        """
        self._fetched = None
        if self._is_here(checkpoint, state):
            return
        remote = self._storage()
        if not remote.holds(state):
            raise RunError(
                f"{checkpoint}: has no files of learner rank {self.rank} on node {node}, and {remote.shown} "
                "has no such checkpoint. Start the run where its ranks were, or delete that folder to resume "
                "from the checkpoint before"
            )
        self._fetched = checkpoint.with_name(f".partial-fetched-{self.rank}")
        shutil.rmtree(self._fetched, ignore_errors=True)
        writers = self._writers(state.num_ranks)
        remote.fetch(
            f"{place_of(state.step)}/learner", self._fetched, lambda name: writer_of(name) in writers
        )

    def problem(self, checkpoint: Path, sums: Checksums, saved_by: int) -> str | None:
        """What is wrong with the files that this rank loads, or with their copy of `fetch`, in words.

        Args:
            sums: Of the checkpoint's files.
            saved_by: How many ranks saved it.
        """
        writers = self._writers(saved_by)
        for path, expected in sums.items():
            name = path.removeprefix("learner/")
            if name == path or writer_of(Path(path).name) not in writers:
                continue
            file = (self._fetched or checkpoint / "learner") / name
            if not file.is_file():
                return f"{path} is missing"
            if file_sum(file) != expected:
                return f"{path} has other content than when it was written"
        return None

    @contextlib.contextmanager
    def readable(self, folder: Path) -> Iterator[Path]:
        """The folder to load files from: `folder`, or the copy of `fetch`, then deleted."""
        yield self._fetched or folder
        if self._fetched is not None:
            shutil.rmtree(self._fetched)
            self._fetched = None

    def _is_here(self, checkpoint: Path, state: TrainingState) -> bool:
        """Whether this node has the files. The folder may be left from another attempt at the same step."""
        try:
            same = TrainingState.parse((checkpoint / STATE).read_bytes()).is_same(state)
        except (FileNotFoundError, ValueError, TypeError):
            return False
        folder = checkpoint / "learner"
        return same and all((folder / random_state(rank)).exists() for rank in self._writers(state.num_ranks))

    def _writers(self, saved_by: int) -> Collection[int]:
        """The ranks whose files of a checkpoint this rank loads.

        Args:
            saved_by: How many ranks saved it.
        """
        return (self.rank,) if saved_by == self.num_ranks else range(saved_by)

    def _own(self, checkpoint: Path) -> list[Path]:
        """The files of a checkpoint that this rank has written."""
        files = [
            path
            for path in checkpoint.glob("learner/**/*")
            if path.is_file() and writer_of(path.name) == self.rank
        ]
        if self.rank == 0:
            files += [
                path
                for path in checkpoint.glob("export/**/*")
                if path.is_file() and path.name not in DRIVERS_FILES
            ]
        return files

    def _storage(self) -> RemoteStorage:
        assert self.remote is not None
        return RemoteStorage(self.remote, self.run_name)


def writer_of(name: str) -> int:
    """The rank that writes a checkpoint's file of this name.

    Each rank writes its own shards and random state, and rank 0 also the files that a checkpoint has once.
    """
    named = re.match(r"(?:bf16_)?(?:zero_pp_rank|random_state)_(\d+)", name)
    return int(named[1]) if named else 0
