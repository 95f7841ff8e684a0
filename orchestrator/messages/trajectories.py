"""The packed trajectories of one group, which an engine samples and a learner rank trains on.

Samples lie back to back in flat arrays, so that a group travels through the object store as a handful of
numpy arrays which every reader maps without a copy. `GroupSummary` is the per-sample scalars that the driver
sees instead of the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Int32

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Sample:
    """One solution, as views into its group's arrays."""

    prompt_ids: Int32[np.ndarray, "prompt_tokens"]
    response_ids: Int32[np.ndarray, "tokens"]
    logprobs: Float32[np.ndarray, "tokens"]
    finished: bool
    z_logprob: float


@dataclass(frozen=True)
class Trajectories:
    """All solutions of one problem.

    A finished response ends with its EOS token; `z_c` is never part of it. `logprobs` are the behaviour
    policy's, at temperature 1. `z_logprobs` is log pi(z_c | x, y, EOS), NaN for an unfinished response or
    when self-rewarding is off. `versions` holds, for each sample, the weight version of its first and of its
    last token.
    """

    prompt_ids: Int32[np.ndarray, "prompt_tokens"]
    response_ids: Int32[np.ndarray, "tokens"]
    logprobs: Float32[np.ndarray, "tokens"]
    lengths: Int32[np.ndarray, "samples"]
    finished: Bool[np.ndarray, "samples"]
    z_logprobs: Float32[np.ndarray, "samples"]
    versions: Int32[np.ndarray, "samples 2"]

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> Sample:
        end = int(self.lengths[: index + 1].sum())
        span = slice(end - int(self.lengths[index]), end)
        return Sample(
            self.prompt_ids,
            self.response_ids[span],
            self.logprobs[span],
            bool(self.finished[index]),
            float(self.z_logprobs[index]),
        )

    def summary(self) -> "GroupSummary":
        return GroupSummary(len(self.prompt_ids), self.lengths, self.finished, self.z_logprobs, self.versions)


@dataclass(frozen=True)
class GroupSummary:
    """What the driver knows of a group: scalars a sample, no tokens. Fields as in `Trajectories`."""

    prompt_tokens: int
    lengths: Int32[np.ndarray, "samples"]
    finished: Bool[np.ndarray, "samples"]
    z_logprobs: Float32[np.ndarray, "samples"]
    versions: Int32[np.ndarray, "samples 2"]


@dataclass(frozen=True)
class Generated:
    """One sampled response before packing. Fields as in `Trajectories`."""

    response_ids: Sequence[int]
    logprobs: Sequence[float]
    finished: bool
    z_logprob: float
    versions: tuple[int, int]


def pack(prompt_ids: Sequence[int], samples: Sequence[Generated]) -> Trajectories:
    """Lay the samples of one problem back to back."""
    return Trajectories(
        prompt_ids=np.asarray(prompt_ids, np.int32),
        response_ids=np.concatenate([np.asarray(s.response_ids, np.int32) for s in samples]),
        logprobs=np.concatenate([np.asarray(s.logprobs, np.float32) for s in samples]),
        lengths=np.array([len(s.response_ids) for s in samples], np.int32),
        finished=np.array([s.finished for s in samples], bool),
        z_logprobs=np.array([s.z_logprob for s in samples], np.float32),
        versions=np.array([s.versions for s in samples], np.int32).reshape(-1, 2),
    )


def to_table(groups: Sequence[Trajectories], columns: dict[str, list]) -> "pa.Table":
    """Trajectories as an Arrow table, one row a sample.

    Args:
        columns: More columns by name, such as problem ids, verdicts and scores, with one value a sample.
    """
    import pyarrow as pa

    rows: dict[str, list] = {
        "group": [],
        "prompt_ids": [],
        "response_ids": [],
        "logprobs": [],
        "finished": [],
        "z_logprob": [],
        "versions": [],
    }
    for number, group in enumerate(groups):
        for index in range(len(group)):
            sample = group.sample(index)
            rows["group"].append(number)
            rows["prompt_ids"].append(sample.prompt_ids)
            rows["response_ids"].append(sample.response_ids)
            rows["logprobs"].append(sample.logprobs)
            rows["finished"].append(sample.finished)
            rows["z_logprob"].append(group.z_logprobs[index])
            rows["versions"].append(group.versions[index])
    return pa.table(rows | columns)


def read_groups(path: Path) -> tuple[list[Trajectories], "pa.Table"]:
    """The groups of a rollout file that `to_table` made, and the whole table."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    groups: dict[int, list[dict]] = {}
    for row in table.select(
        ["group", "prompt_ids", "response_ids", "logprobs", "finished", "z_logprob", "versions"]
    ).to_pylist():
        groups.setdefault(row["group"], []).append(row)
    packed = [
        pack(
            rows[0]["prompt_ids"],
            [
                Generated(
                    r["response_ids"], r["logprobs"], r["finished"], r["z_logprob"], tuple(r["versions"])
                )
                for r in rows
            ],
        )
        for rows in groups.values()
    ]
    return packed, table
