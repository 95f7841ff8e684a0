"""A learner rank's files of a checkpoint: summed, compared, uploaded and downloaded."""

from pathlib import Path

import ray

from orchestrator.errors import LaserError
from orchestrator.storage.checkpoints import TrainingState
from orchestrator.storage.checksums import Checksums
from orchestrator.storage.shards import ShardFiles


class RankFiles:
    """The methods of a rank's actor that touch only files. Each returns the reason of a failure.

    An error would end the other ranks' work, and Ray would print each rank's.
    """

    files: ShardFiles

    def seal(self, checkpoint: str) -> Checksums:
        """Flush this rank's files of a checkpoint to the disk; returns their checksums."""
        return self.files.seal(Path(checkpoint))

    def verify(self, checkpoint: str, sums: Checksums, saved_by: int) -> str | None:
        """Compare the files of a checkpoint that this rank loads with their checksums, before `load`."""
        return self.files.problem(Path(checkpoint), sums, saved_by)

    def upload(self, checkpoint: str, place: str) -> str | None:
        """Copy this rank's files of a checkpoint to `place` in `run.remote`."""
        try:
            self.files.upload(Path(checkpoint), place)
        except LaserError as error:
            return str(error)
        return None

    def fetch(self, checkpoint: str, state: TrainingState) -> str | None:
        """Download the files of a checkpoint that this rank loads, unless they are on this node."""
        try:
            self.files.fetch(Path(checkpoint), state, ray.util.get_node_ip_address())
        except LaserError as error:
            return str(error)
        return None
