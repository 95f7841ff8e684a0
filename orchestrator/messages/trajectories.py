"""The packed trajectories of one group, which an engine samples and a learner rank trains on.

Samples lie back to back in flat numpy arrays, which every reader maps from the object store without a copy.
The driver sees a `GroupSummary` instead of the tokens: a few scalars for each sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32, Int32

from orchestrator.messages.spans import Span

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Sample:
    """One solution, as views into its group's arrays. Fields as in `Trajectories`."""

    prompt_ids: Int32[np.ndarray, "prompt_tokens"]
    response_ids: Int32[np.ndarray, "tokens"]
    logprobs: Float32[np.ndarray, "tokens"]
    finished: bool
    z_logprob: float


@dataclass(frozen=True)
class Trajectories:
    """All solutions of one problem. Log-probs are natural logs."""

    prompt_ids: Int32[np.ndarray, "prompt_tokens"]
    response_ids: Int32[np.ndarray, "tokens"]
    """A finished response ends with its EOS token; z_c is never part of it."""
    logprobs: Float32[np.ndarray, "tokens"]
    """Of the behaviour policy, at temperature 1."""
    lengths: Int32[np.ndarray, "samples"]
    """Tokens of each response."""
    finished: Bool[np.ndarray, "samples"]
    z_logprobs: Float32[np.ndarray, "samples"]
    """log pi(z_c | x, y, EOS); NaN for an unfinished response and without self-rewarding."""
    versions: Int32[np.ndarray, "tokens"]
    """Version of the weights that sampled each token, -1 without any. That of EOS read z_c too."""

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.lengths)

    def sample(self, index: int) -> Sample:
        """The solution with this number, without a copy."""
        span = self.span(index)
        return Sample(
            self.prompt_ids,
            self.response_ids[span],
            self.logprobs[span],
            bool(self.finished[index]),
            float(self.z_logprobs[index]),
        )

    def span(self, index: int) -> slice:
        """Where the tokens of the solution with this number lie in the arrays."""
        end = int(self.lengths[: index + 1].sum())
        return slice(end - int(self.lengths[index]), end)

    def summary(self) -> "GroupSummary":
        """The scalars of all samples, without tokens."""
        versions = [self.versions[self.span(index)] for index in range(len(self))]
        extremes = [(of.min(), of.max()) if len(of) else (-1, -1) for of in versions]
        return GroupSummary(
            len(self.prompt_ids),
            self.lengths,
            self.finished,
            self.z_logprobs,
            np.array(extremes, np.int32).reshape(-1, 2),
        )


@dataclass(frozen=True)
class GroupSummary:
    """A group as the driver sees it: scalars for each sample, no tokens. Fields as in `Trajectories`."""

    prompt_tokens: int
    lengths: Int32[np.ndarray, "samples"]
    finished: Bool[np.ndarray, "samples"]
    z_logprobs: Float32[np.ndarray, "samples"]
    versions: Int32[np.ndarray, "samples 2"]
    """Oldest and newest version of the weights that sampled each response; -1 without any."""
    generated: Span | None = None
    """When the engine worked on the group."""


@dataclass(frozen=True)
class Generated:
    """One sampled response, or a piece of one, before packing. Fields as in `Trajectories`."""

    response_ids: Sequence[int]
    logprobs: Sequence[float]
    finished: bool
    z_logprob: float
    versions: Sequence[int]


def pack(prompt_ids: Sequence[int], samples: Sequence[Generated]) -> Trajectories:
    """Lay the responses to one problem back to back."""
    return Trajectories(
        prompt_ids=np.asarray(prompt_ids, np.int32),
        response_ids=np.concatenate([np.asarray(sample.response_ids, np.int32) for sample in samples]),
        logprobs=np.concatenate([np.asarray(sample.logprobs, np.float32) for sample in samples]),
        lengths=np.array([len(sample.response_ids) for sample in samples], np.int32),
        finished=np.array([sample.finished for sample in samples], bool),
        z_logprobs=np.array([sample.z_logprob for sample in samples], np.float32),
        versions=np.concatenate([np.asarray(sample.versions, np.int32) for sample in samples]),
    )


def to_table(groups: Sequence[Trajectories], columns: Mapping[str, Sequence[Any]]) -> "pa.Table":
    """Trajectories as an Arrow table, one row a sample.

    Args:
        columns: More columns by name, such as problem ids, verdicts and scores, with one value a sample.
    """
    import pyarrow as pa

    rows: dict[str, list[Any]] = {
        "group": [],
        "prompt_ids": [],
        "response_ids": [],
        "logprobs": [],
        "finished": [],
        "z_logprob": [],
        "token_versions": [],
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
            rows["token_versions"].append(group.versions[group.span(index)])
    return pa.table({**rows, **columns})


def read_groups(path: Path) -> tuple[list[Trajectories], "pa.Table"]:
    """The groups of a rollout file that `to_table` made, and the whole table.

    Files of earlier versions hold only the oldest and the newest version of each sample.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    groups: dict[int, list[dict[str, Any]]] = {}
    versions = "token_versions" if "token_versions" in table.column_names else "versions"
    for row in table.select(
        ["group", "prompt_ids", "response_ids", "logprobs", "finished", "z_logprob", versions]
    ).to_pylist():
        groups.setdefault(row["group"], []).append(row)
    return [_packed(rows) for rows in groups.values()], table


def _packed(rows: Sequence[Mapping[str, Any]]) -> Trajectories:
    """The group of a rollout file's rows."""
    return pack(
        rows[0]["prompt_ids"],
        [
            Generated(
                row["response_ids"],
                row["logprobs"],
                row["finished"],
                row["z_logprob"],
                row["token_versions"] if "token_versions" in row else _each_token(row),
            )
            for row in rows
        ],
    )


def _each_token(row: Mapping[str, Any]) -> list[int]:
    """A version for each token, from the oldest and the newest: the last token alone gets the newest."""
    oldest, newest = row["versions"]
    return [oldest] * (len(row["response_ids"]) - 1) + [newest]
