"""How far a worker's process has come with its work, as it tells the driver once a second."""

import json
from dataclasses import asdict, dataclass

NAMESPACE = b"laser-progress"
"""Of the cluster's key-value store, where each actor's progress lies under the actor's id."""


@dataclass(frozen=True)
class Progress:
    """One message of a worker's process."""

    count: int
    """Pieces of work that are done: decode steps, micro-batches, chunks of weights, checks."""
    beat: int
    """Messages before this one: it stands still when the process is stopped."""
    doing: str
    """The newest piece of work, in words."""
    pid: int
    node: str
    """Ray's id of the node."""

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Progress":
        """Undo `to_bytes`."""
        return cls(**json.loads(data))
