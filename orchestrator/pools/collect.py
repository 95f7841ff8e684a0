"""Groups on their way through generation and verification, and the numbers that the loop takes from them.

In: prompts. Out: `Group`s, each with refs to its trajectories and, for every sample, reward, score, length and verdict.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from jaxtyping import Bool, Float32, Int32
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.data.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.trajectories import GroupSummary, to_table
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.pool import Pool, finished
from orchestrator.storage.files import atomically


@dataclass
class Group:
    """One problem and its samples. `trajectories` and `texts` stay in the object store."""

    problem: Problem
    request: GroupRequest
    trajectories: Any = None
    texts: Any = None
    summary: GroupSummary | None = None
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """Per-sample scalars of some groups, laid out group after group; what the driver knows of a rollout batch."""

    groups: list[Group]
    group: Int32[np.ndarray, "samples"]
    rewards: Float32[np.ndarray, "samples"]
    verified: Bool[np.ndarray, "samples"]
    """False where the check timed out or failed: such a sample is neither right nor wrong, and is not trained on."""
    finished: Bool[np.ndarray, "samples"]
    z_logprobs: Float32[np.ndarray, "samples"]
    lengths: Int32[np.ndarray, "samples"]
    """Response tokens."""
    total_lengths: Int32[np.ndarray, "samples"]
    """Prompt and response tokens."""
    versions: Int32[np.ndarray, "samples"]
    """Oldest weight version in the sample."""

    @property
    def scored(self) -> Bool[np.ndarray, "samples"]:
        """Samples that have both a verdict and an end at which the score is read."""
        return self.verified & self.finished

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for group in self.groups for verdict in group.verdicts]

    @property
    def accuracy(self) -> float:
        """Share of correct solutions among those that could be checked."""
        return float(self.rewards[self.verified].mean()) if self.verified.any() else float("nan")

    def count(self, status: Status) -> int:
        return sum(verdict.status is status for verdict in self.verdicts)


@dataclass(frozen=True)
class CollectTimes:
    """Seconds until the last sample was generated, and from there until the last verdict (the rest overlaps)."""

    rollout: float
    verify: float


def collect(rollouts: Pool, verifiers: Pool, groups: Sequence[Group]) -> tuple[Batch, CollectTimes]:
    """Generate and verify groups. A group goes to verification when its last sample ends, while others are still generated."""
    started = last_generated = time.perf_counter()

    def generate(group: Group) -> None:
        rollouts.submit(
            "generate", group.request, num_returns=3, context=group, remake=partial(generate, group)
        )

    for group in groups:
        generate(group)
    for pool, task, value in finished(rollouts, verifiers):
        group = task.context
        if pool is rollouts:
            group.trajectories, group.texts, _ = task.refs
            group.summary = value
            last_generated = time.perf_counter()
            checked = (group.texts, value.finished.tolist(), group.problem.answer)
            verifiers.submit("verify", *checked, context=group, remake=partial(generate, group))
        else:
            group.verdicts = value
    return to_batch(groups), CollectTimes(last_generated - started, time.perf_counter() - last_generated)


def to_batch(groups: Sequence[Group]) -> Batch:
    """Lay out the scalars of generated and verified groups.

    Raises:
        ValueError: A group has no summary, or not one verdict for each of its samples: its scalars would shift those of others.
    """
    summaries = []
    for group in groups:
        if group.summary is None or len(group.verdicts) != len(group.summary.lengths):
            samples = "no" if group.summary is None else str(len(group.summary.lengths))
            raise ValueError(
                f"problem {group.problem.id}: {samples} generated samples, but {len(group.verdicts)} verdicts"
            )
        summaries.append(group.summary)
    statuses = [verdict.status for group in groups for verdict in group.verdicts]
    lengths = np.concatenate([summary.lengths for summary in summaries])
    prompt_lengths = np.concatenate(
        [np.full(len(summary.lengths), summary.prompt_tokens, np.int32) for summary in summaries]
    )
    return Batch(
        groups=list(groups),
        group=np.concatenate(
            [np.full(len(summary.lengths), number, np.int32) for number, summary in enumerate(summaries)]
        ),
        rewards=np.array([status is Status.CORRECT for status in statuses], np.float32),
        verified=np.array([status not in (Status.TIMEOUT, Status.ERROR) for status in statuses], bool),
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
    """Write a batch as parquet, a row a sample, from a task: the tokens do not pass through the driver."""
    packed = [group.trajectories for group in batch.groups]
    _write(
        path,
        batch,
        sample_columns(batch, scores) | {"reward": batch.rewards, "advantage": advantages.astype(np.float32)},
        packed,
    )


def save_samples(path: Path, batch: Batch, scores: Float32[np.ndarray, "samples"] | None) -> None:
    """Write the solutions of an evaluation as parquet, a row a sample, without their tokens."""
    problems = [batch.groups[number].problem for number in batch.group]
    columns = {
        "kind": [problem.kind for problem in problems],
        "sample": np.concatenate([np.arange(len(group.verdicts), dtype=np.int32) for group in batch.groups]),
        "finished": batch.finished,
        "tokens": batch.lengths,
    }
    _write(path, batch, sample_columns(batch, scores) | columns, None)


def sample_columns(batch: Batch, scores: Float32[np.ndarray, "samples"] | None) -> dict[str, Any]:
    """Problem, verdict and score of each sample; the score is NaN where there is none."""
    problems = [batch.groups[number].problem for number in batch.group]
    return {
        "problem_id": [problem.id for problem in problems],
        "problem": [problem.text for problem in problems],
        "reference": [problem.answer for problem in problems],
        "status": [str(verdict.status) for verdict in batch.verdicts],
        "answer": [verdict.answer for verdict in batch.verdicts],
        "score": np.full(len(batch.rewards), np.nan, np.float32) if scores is None else scores,
    }


def _write(path: Path, batch: Batch, columns: dict[str, Any], trajectories: list | None) -> None:
    """Write columns, responses and, where given, trajectories, from a task beside the driver, whose files need not be seen elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [group.texts for group in batch.groups]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(_write_table).options(num_cpus=0, scheduling_strategy=here)
    ray.get(task.remote(str(path.resolve()), trajectories, texts, columns))


def _write_table(path: str, trajectory_refs: list | None, text_refs: list, columns: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns["response"] = [text for group in ray.get(text_refs) for text in group]
    table = pa.table(columns) if trajectory_refs is None else to_table(ray.get(trajectory_refs), columns)
    with atomically(Path(path)) as partial:
        pq.write_table(table, partial, compression="zstd")
