"""Take groups of samples through generation and verification.

In: `Group`s, each a problem and the samples to draw. Out: a `Batch` of `CheckedGroup`s, each with refs to its
trajectories and texts, and with length, score and verdict of every sample.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import ray
from jaxtyping import Bool, Float32, Int32
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.waits import fetched
from orchestrator.messages.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.trajectories import GroupSummary, to_table
from orchestrator.messages.verdicts import UNJUDGED, Status, Verdict
from orchestrator.pools.events import run_until
from orchestrator.pools.pool import Pool
from orchestrator.pools.task import Task
from orchestrator.storage.files import atomically

WRITE_TIMEOUT_S = 1800.0
"""How long a table of a batch may take to be written."""


@dataclass(frozen=True, eq=False)
class Group:
    """A problem and the samples to draw for it."""

    problem: Problem
    request: GroupRequest


@dataclass(frozen=True, eq=False)
class GeneratedGroup:
    """A problem and its samples. Tokens and texts stay in the object store."""

    problem: Problem
    trajectories: ObjectRef
    """Ref to `Trajectories`."""
    texts: ObjectRef
    """Ref to the decoded responses, a list of strings."""
    summary: GroupSummary


@dataclass(frozen=True, eq=False)
class CheckedGroup(GeneratedGroup):
    """A problem, its samples and one verdict for each of them.

    Raises:
        ValueError: The number of verdicts is not that of the samples.
    """

    verdicts: Sequence[Verdict]

    def __post_init__(self) -> None:
        samples = len(self.summary.lengths)
        if len(self.verdicts) != samples:
            raise ValueError(
                f"problem {self.problem.id}: {samples} generated samples, but {len(self.verdicts)} verdicts"
            )


@dataclass(frozen=True)
class Batch:
    """Per-sample values of some groups, one group after another: all that the driver knows of them."""

    groups: list[CheckedGroup]
    group: Int32[np.ndarray, "samples"]
    """Index of the sample's group in `groups`."""
    rewards: Float32[np.ndarray, "samples"]
    """0 to 1; 0 stands where `verified` is False."""
    correct: Bool[np.ndarray, "samples"]
    """Whether the reward is above `loss.correct_above`."""
    verified: Bool[np.ndarray, "samples"]
    """False where the check timed out or failed: it is neither right nor wrong, and not trained on."""
    finished: Bool[np.ndarray, "samples"]
    """Whether the response ended by itself, with an EOS token."""
    z_logprobs: Float32[np.ndarray, "samples"]
    """log pi(z_c | x, y, EOS); NaN where unfinished."""
    lengths: Int32[np.ndarray, "samples"]
    """Response tokens."""
    total_lengths: Int32[np.ndarray, "samples"]
    """Prompt and response tokens."""
    versions: Int32[np.ndarray, "samples"]
    """The oldest weights that sampled one of the sample's tokens."""

    @property
    def scored(self) -> Bool[np.ndarray, "samples"]:
        """Samples that have a verdict and an EOS token, at which the score is read."""
        return self.verified & self.finished

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for group in self.groups for verdict in group.verdicts]

    @property
    def accuracy(self) -> float:
        """Share of correct samples among the verified ones; NaN when none is verified."""
        correct = self.correct[self.verified].astype(np.float32)
        return float(correct.mean()) if len(correct) else float("nan")

    def count(self, status: Status) -> int:
        """Samples with this status."""
        return sum(verdict.status is status for verdict in self.verdicts)


NO_LABELS: Mapping[str, Any] = MappingProxyType({})


class Collection:
    """Groups on their way through generation and verification, which `orchestrator.pools.events` drives.

    Each group is verified as soon as its last sample ends, while engines generate others. A group whose data
    is lost with a node is generated again.

    Args:
        rollouts: The engines.
        verifiers: Check the answers.
        groups: Submitted at once, in this order.
        labels: What the groups are for, such as their step, in the run's trace.

    Attributes:
        checked: The groups that are done, by number.
        on_checked: Called with a group's number when it is done.
        started: When the groups were submitted, by `time.perf_counter`.
        last_generated: When the newest sample was generated.
        last_checked: When the newest verdict came.
    """

    def __init__(
        self,
        rollouts: Pool,
        verifiers: Pool,
        groups: Sequence[Group],
        labels: Mapping[str, Any] = NO_LABELS,
    ) -> None:
        self.rollouts = rollouts
        self.verifiers = verifiers
        self.groups = groups
        self.labels = labels
        self.checked: dict[int, CheckedGroup] = {}
        self.on_checked: Callable[[int], None] | None = None
        self.started = time.perf_counter()
        self.last_generated = self.started
        self.last_checked = self.started
        for number in range(len(groups)):
            self._generate(number)

    @property
    def is_complete(self) -> bool:
        """Whether every group is checked."""
        return len(self.checked) == len(self.groups)

    def batch(self) -> Batch:
        """The groups of a complete collection, in the order of their submission."""
        return to_batch([self.checked[number] for number in range(len(self.groups))])

    def _generate(self, number: int) -> None:
        self.rollouts.submit(
            "generate",
            self.groups[number].request,
            num_returns=3,
            context=(number, self.groups[number]),
            remake=partial(self._generate, number),
            done=self._verify,
            labels=self._labels(number),
        )

    def _verify(self, task: Task, summary: GroupSummary) -> None:
        self.last_generated = time.perf_counter()
        number, _ = task.context
        trajectories, texts, _ = task.refs
        group = GeneratedGroup(self.groups[number].problem, trajectories, texts, summary)
        self.verifiers.submit(
            "verify",
            texts,
            summary.finished.tolist(),
            group.problem,
            context=(number, group),
            remake=partial(self._generate, number),
            done=self._keep,
            labels=self._labels(number),
        )

    def _labels(self, number: int) -> Mapping[str, Any]:
        return {**self.labels, "group": number, "problem": self.groups[number].problem.id}

    def _keep(self, task: Task, verdicts: Sequence[Verdict]) -> None:
        self.last_checked = time.perf_counter()
        number, group = task.context
        self.checked[number] = CheckedGroup(**vars(group), verdicts=verdicts)
        if self.on_checked is not None:
            self.on_checked(number)


def collect(
    rollouts: Pool, verifiers: Pool, groups: Sequence[Group], labels: Mapping[str, Any] = NO_LABELS
) -> Batch:
    """Generate and verify groups; the batch has them in the same order. `labels` as of `Collection`.

    Raises:
        PoolError and Ray's errors: As `Pool.settle`.
    """
    collection = Collection(rollouts, verifiers, groups, labels)
    run_until(lambda: collection.is_complete, rollouts, verifiers)
    return collection.batch()


def to_batch(groups: Sequence[CheckedGroup]) -> Batch:
    """Lay out the values of all samples, one group after another."""
    summaries = [group.summary for group in groups]
    sizes = [len(summary.lengths) for summary in summaries]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    lengths = np.concatenate([summary.lengths for summary in summaries])
    prompt_lengths = np.repeat(np.array([summary.prompt_tokens for summary in summaries], np.int32), sizes)
    return Batch(
        groups=list(groups),
        group=np.repeat(np.arange(len(groups), dtype=np.int32), sizes),
        rewards=np.array([verdict.reward or 0.0 for verdict in verdicts], np.float32),
        correct=np.array([verdict.status is Status.CORRECT for verdict in verdicts], bool),
        verified=np.array([verdict.status not in UNJUDGED for verdict in verdicts], bool),
        finished=np.concatenate([summary.finished for summary in summaries]),
        z_logprobs=np.concatenate([summary.z_logprobs for summary in summaries]),
        lengths=lengths,
        total_lengths=lengths + prompt_lengths,
        versions=np.concatenate([summary.versions[:, 0] for summary in summaries]),
    )


def save_rollouts(
    path: Path,
    batch: Batch,
    scores: Float32[np.ndarray, "samples"] | None,
    advantages: Float32[np.ndarray, "samples"],
) -> None:
    """Write a batch with its tokens as parquet, a row a sample.

    Raises:
        ray.exceptions.ObjectLostError: Tokens or texts were lost with a node.
    """
    columns = sample_columns(batch, scores) | {"advantage": advantages.astype(np.float32)}
    _write(path, batch, columns, [group.trajectories for group in batch.groups])


def save_samples(path: Path, batch: Batch, scores: Float32[np.ndarray, "samples"] | None) -> None:
    """Write the solutions of an evaluation as parquet, a row a sample, without their tokens.

    Raises:
        ray.exceptions.ObjectLostError: Texts were lost with a node.
    """
    problems = [batch.groups[number].problem for number in batch.group]
    columns = {
        "kind": [problem.kind for problem in problems],
        "sample": np.concatenate([np.arange(len(group.verdicts), dtype=np.int32) for group in batch.groups]),
        "finished": batch.finished,
        "tokens": batch.lengths,
    }
    _write(path, batch, sample_columns(batch, scores) | columns, None)


def sample_columns(batch: Batch, scores: Float32[np.ndarray, "samples"] | None) -> dict[str, Any]:
    """Problem, verdict and score of each sample, as columns of a table. A missing number is NaN."""
    problems = [batch.groups[number].problem for number in batch.group]
    return {
        "source": [problem.source for problem in problems],
        "problem_id": [problem.id for problem in problems],
        "problem": [problem.text for problem in problems],
        "reference": [problem.reference for problem in problems],
        "fields": [json.dumps(problem.fields) for problem in problems],
        "status": [str(verdict.status) for verdict in batch.verdicts],
        "reward": np.where(batch.verified, batch.rewards, np.float32(np.nan)),
        "parts": [json.dumps(dict(verdict.parts)) if verdict.parts else None for verdict in batch.verdicts],
        "answer": [verdict.answer for verdict in batch.verdicts],
        "detail": [verdict.detail for verdict in batch.verdicts],
        "score": np.full(len(batch.rewards), np.nan, np.float32) if scores is None else scores,
    }


def _write(path: Path, batch: Batch, columns: dict[str, Any], trajectories: list[ObjectRef] | None) -> None:
    """Write columns, responses and, where given, tokens from a task, so that the driver never holds them.

    The task runs on the driver's node, because other nodes need not see the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [group.texts for group in batch.groups]
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(_write_table).options(num_cpus=0, scheduling_strategy=this_node)
    written = task.remote(str(path.resolve()), trajectories, texts, columns)
    fetched(written, f"the word that {path} is written", WRITE_TIMEOUT_S)


def _write_table(
    path: str,
    trajectories: list[ObjectRef] | None,
    texts: list[ObjectRef],
    columns: dict[str, Any],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns["response"] = [text for group in fetched(texts, "the responses") for text in group]
    if trajectories is None:
        table = pa.table(columns)
    else:
        table = to_table(fetched(trajectories, "the tokens"), columns)
    with atomically(Path(path)) as partial_file:
        pq.write_table(table, partial_file, compression="zstd")
