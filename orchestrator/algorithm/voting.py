"""Majority voting over the sampled answers of a problem, plain (Maj@K) or weighted by self-rewards."""

import math
import operator
from collections.abc import Callable, Sequence

Equal = Callable[[str, str], bool]


def majority_vote(answers: Sequence[str | None], weights: Sequence[float] | None = None, equal: Equal = operator.eq) -> int | None:
    """Index of the first sample that gives the winning answer; None when no sample has an answer.

    Equal answers pool their weights (1 each by default; self-rewards clipped to [0, 1] for the weighted vote); `equal` compares
    an answer with the first of each pool. A None answer casts no vote, and a tie goes to the answer seen first, also when all
    weights are 0. Raises ValueError when the lengths differ or an answer's weight is negative or NaN.
    """
    weights = [1.0] * len(answers) if weights is None else weights
    pools: list[tuple[int, str, list[float]]] = []
    for sample, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is None:
            continue
        if not weight >= 0:
            raise ValueError(f"the weight of sample {sample} is {weight}: clip scores to [0, 1], and give unfinished samples 0")
        for _, pooled_answer, votes in pools:
            if equal(pooled_answer, answer):
                votes.append(weight)
                break
        else:
            pools.append((sample, answer, [weight]))
    # fsum, so that a tie does not depend on the order in which equal weights were added; max keeps the first of equals.
    return max(pools, key=lambda pool: math.fsum(pool[2]))[0] if pools else None


def maj_at_k(
    answers_by_problem: Sequence[Sequence[str | None]],
    correct_by_problem: Sequence[Sequence[bool]],
    weights_by_problem: Sequence[Sequence[float]] | None = None,
    equal: Equal = operator.eq,
) -> float:
    """Share of problems whose voted answer is correct; a problem without any answer counts as wrong, no problem at all gives NaN.

    `correct_by_problem` holds the verifier's verdict on each sample; the vote is judged by the first sample with the winning answer.
    """
    problems = len(answers_by_problem)
    all_weights = [None] * problems if weights_by_problem is None else weights_by_problem
    right = 0
    for answers, correct, weights in zip(answers_by_problem, correct_by_problem, all_weights, strict=True):
        chosen = majority_vote(answers, weights, equal)
        right += chosen is not None and bool(correct[chosen])
    return right / problems if problems else math.nan
