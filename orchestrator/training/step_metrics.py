"""The metrics of one training step, from what the driver knows of the batch and what the ranks summed up."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from orchestrator.algorithm.metrics import self_verification
from orchestrator.messages.batches import StepSums
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import Batch

MOST_LABELS = 50
"""Metrics by source and by kind are made for so many of them at most."""


def step_metrics(
    step: int,
    batch: Batch,
    scores: Float32[np.ndarray, "samples"] | None,
    sums: Sequence[StepSums],
    seconds: Mapping[str, float],
) -> dict[str, float]:
    """Metrics by their MLflow names. One that the batch does not define is NaN.

    Args:
        step: Counts from 1; the ranks learned from weights of version `step - 1`.
        scores: Self-reward of each sample, NaN where unfinished; None while the run has no score.
        sums: One a rank.
        seconds: Of the step's parts: `wait`, `rollout`, `verify`, `sync` and the whole `step`.
    """
    tokens = sum(rank.tokens for rank in sums)
    learning_s = max(rank.seconds for rank in sums)
    return (
        _batch_metrics(batch)
        | {
            "rollout/staleness": float((step - 1 - batch.versions).mean()),
            "rollout/staleness_max": float((step - 1 - batch.versions).max()),
        }
        | _loss_metrics(sums, tokens)
        | _importance_metrics(sums, tokens)
        | {
            "time/wait": seconds["wait"],
            "time/rollout": seconds["rollout"],
            "time/verify": seconds["verify"],
            "time/learn": learning_s,
            "time/streamed": max(rank.streamed_seconds for rank in sums),
            "time/sync": seconds["sync"],
            "time/step": seconds["step"],
            "throughput/samples_per_s": len(batch.rewards) / seconds["step"],
            "throughput/tokens_per_s": float(batch.lengths.sum()) / seconds["step"],
            "throughput/rollout_tokens_per_s": _rate(float(batch.lengths.sum()), seconds["rollout"]),
            "throughput/learning_tokens_per_s": tokens / learning_s,
        }
        | ({} if scores is None else _score_metrics(batch, scores, sums))
        | metrics_by_source(batch)
    )


def _rate(amount: float, seconds: float) -> float:
    """NaN where a batch was generated in the time of an older one, and so has no time of its own."""
    return amount / seconds if seconds else math.nan


def _batch_metrics(batch: Batch) -> dict[str, float]:
    return {
        "train/accuracy": batch.accuracy,
        "train/reward": _mean(batch.rewards[batch.verified]),
        "train/response_tokens": float(batch.lengths.mean()),
        "train/finished_share": float(batch.finished.mean()),
        "verify/timeouts": float(batch.count(Status.TIMEOUT)),
        "verify/memory": float(batch.count(Status.MEMORY)),
        "verify/errors": float(batch.count(Status.ERROR)),
    } | part_means(batch.verdicts)


def part_means(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The mean of each part of the rewards, over the samples that have it: `reward/<part>`."""
    values: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, value in verdict.parts.items():
            values.setdefault(f"reward/{name}", []).append(value)
    return {name: float(np.mean(values[name])) for name in sorted(values)}


def _importance_metrics(sums: Sequence[StepSums], tokens: int) -> dict[str, float]:
    weights, squares = sum(rank.importance for rank in sums), sum(rank.importance_squares for rank in sums)
    return {
        "policy/importance_truncated": _share(sum(rank.truncated_tokens for rank in sums), tokens),
        "policy/importance_masked": _share(sum(rank.masked_tokens for rank in sums), tokens),
        "policy/importance_mean": _share(weights, tokens),
        # With every weight 0 no token is left.
        "policy/importance_ess": _share(weights**2 / squares if squares else 0.0, tokens),
    }


def metrics_by_source(batch: Batch) -> dict[str, float]:
    """The share of a step's samples, the accuracy and the mean reward of each source, and of each kind.

    Empty where all problems have one source and one kind; of many kinds none is told apart.
    """
    found: dict[str, float] = {}
    correct = np.array([verdict.status is Status.CORRECT for verdict in batch.verdicts], np.float32)
    for name in ("source", "kind"):
        labels = np.array([getattr(group.problem, name) or "" for group in batch.groups])[batch.group]
        named = sorted({*labels.tolist()} - {""})
        for label in named if 1 < len(named) <= MOST_LABELS else ():
            chosen = labels == label
            checked = chosen & batch.verified
            found |= {
                f"{name}/{label}/share": float(chosen.mean()),
                f"{name}/{label}/accuracy": _mean(correct[checked]),
                f"{name}/{label}/reward": _mean(batch.rewards[checked]),
            }
    return found


def _loss_metrics(sums: Sequence[StepSums], tokens: int) -> dict[str, float]:
    compared_tokens = sum(rank.compared_tokens for rank in sums)
    return {
        "loss/policy": sum(rank.policy_loss for rank in sums),
        "loss/total": sum(rank.total_loss for rank in sums),
        "policy/clip_share": _share(sum(rank.clipped_tokens for rank in sums), tokens),
        "policy/entropy": _share(sum(rank.entropy for rank in sums), tokens),
        "policy/mismatch_kl": _share(sum(rank.mismatch_kl for rank in sums), compared_tokens),
        "policy/mismatch_mean": _share(sum(rank.mismatch_abs for rank in sums), compared_tokens),
        "policy/mismatch_max": float(np.max([rank.mismatch_max for rank in sums])),
        "policy/grad_norm": sums[0].grad_norm,
        "learn/skipped_steps": float(sums[0].skipped),
        "policy/kl": sum(rank.kl for rank in sums),  # 0 without a reference model
    }


def _score_metrics(
    batch: Batch, scores: Float32[np.ndarray, "samples"], sums: Sequence[StepSums]
) -> dict[str, float]:
    correct = batch.correct
    agreement = self_verification(
        scores[batch.verified], correct[batch.verified], batch.finished[batch.verified]
    )
    return {
        "loss/self_reward": sum(rank.self_reward_loss for rank in sums),
        "self_reward/f1": agreement.f1,
        "self_reward/accuracy_correct": agreement.accuracy_correct,
        "self_reward/accuracy_wrong": agreement.accuracy_wrong,
        "self_reward/score_correct": _mean(scores[batch.scored & correct]),
        "self_reward/score_wrong": _mean(scores[batch.scored & ~correct]),
        "self_reward/z_mass": _share(sum(rank.z_mass for rank in sums), sum(rank.tokens for rank in sums)),
        "self_reward/mismatch_max": float(np.max([rank.z_mismatch_max for rank in sums])),
    }


def _share(total: float, tokens: int) -> float:
    """A mean over the learned tokens; NaN where the step had none."""
    return total / tokens if tokens else math.nan


def _mean(values: Float32[np.ndarray, "values"]) -> float:
    return float(values.mean()) if len(values) else math.nan
