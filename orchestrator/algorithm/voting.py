"""What k of a problem's n samples are worth: pass@k, votes plain (Maj@k) and weighted by self-reward, and best-of-k by self-reward.

In: the `Samples` of each problem. Out: an `Estimate`, the mean over problems of the expectation over all subsets of k samples, so
that nothing depends on the order in which samples came.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int

EXACT_SUBSETS = 10_000
"""A vote is taken over all subsets of a problem up to this number of them, and over a draw of them beyond."""
TIE = 1e-9
"""Sums of weights that are nearer than this are a tie: floating-point sums depend on the order of their terms."""


@dataclass(frozen=True)
class Samples:
    """The sampled solutions of one problem. Raises ValueError when there is none, when lengths differ, or on an answer below -1."""

    answers: Int[np.ndarray, "samples"]
    """Class of the answer: equal answers share a number from 0 on, -1 is no answer."""
    correct: Bool[np.ndarray, "samples"]
    scores: Float[np.ndarray, "samples"] | None = None
    """Self-rewards, unclipped; NaN where unfinished. None for a model without self-reward."""
    tokens: Int[np.ndarray, "samples"] | None = None
    """Tokens that each sample took."""

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in vars(self).items() if column is not None}
        if len(set(lengths.values())) != 1 or not len(self.answers):
            raise ValueError(f"the samples of a problem need columns of one length above 0, not {lengths}")
        if np.min(self.answers) < -1:
            raise ValueError(
                f"an answer's class is {np.min(self.answers)}: number them from 0 on, and give -1 to no answer"
            )

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def weights(self) -> Float[np.ndarray, "samples"]:
        """Votes of the weighted vote: scores clipped to [0, 1], 0 where unfinished. Raises ValueError without scores."""
        return vote_weights(self._scores)

    @property
    def by_score(self) -> Float[np.ndarray, "samples"]:
        """Scores to rank by, -inf where unfinished. Raises ValueError without scores."""
        return np.where(np.isnan(self._scores), -np.inf, self._scores)

    @property
    def _scores(self) -> Float[np.ndarray, "samples"]:
        if self.scores is None:
            raise ValueError(
                "the samples have no scores: leave weighted votes and best-of-k out for a model without self-reward"
            )
        return np.asarray(self.scores, np.float64)

    def classes(self) -> tuple[Bool[np.ndarray, "samples classes"], Float[np.ndarray, "classes"]]:
        """Which sample gives which answer, and the share of each answer's samples that the verifier calls correct.

        Pooled answers are equal, so that their verdicts should agree and the share be 0 or 1. Where they do not (a format that
        one check could read and another could not), an answer that wins counts by the share.
        """
        named, index = np.unique(self.answers, return_inverse=True)
        members = (index[:, None] == np.arange(len(named)))[:, named >= 0]
        return members, np.asarray(self.correct, np.float64) @ members / members.sum(axis=0)


@dataclass(frozen=True)
class Estimate:
    """A mean over problems."""

    value: float
    standard_error: float
    """Of the random draw of subsets alone: 0 where all subsets were taken."""
    by_problem: Float[np.ndarray, "problems"] = field(compare=False, repr=False)
    """The values that `value` is the mean of: what `metrics.bootstrap_interval` and `metrics.paired_difference` take."""


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4 and so on up to n: the k of a table."""
    return [1 << power for power in range(n.bit_length())]


def vote_weights(scores: Float[np.ndarray, "samples"]) -> Float[np.ndarray, "samples"]:
    """Scores clipped to [0, 1], and 0 for NaN, an unfinished sample. Source: LaSeR (arXiv 2510.14943), RM@K."""
    return np.clip(np.nan_to_num(np.asarray(scores, np.float64), nan=0.0), 0, 1)


def answer_classes(answers: Sequence[str], equal: Callable[[str, str], bool]) -> list[int]:
    """The class of each answer to one problem: equal answers share one, numbered from 0 in order of appearance.

    Each answer, the shortest first and then in order of the text, is compared with the first answer of every class found
    so far. Classes therefore depend neither on the order of the samples nor on `equal` being transitive. `equal` is not
    asked about equal texts.
    """
    found: dict[str, int] = {}
    firsts: list[str] = []
    for answer in sorted(set(answers), key=lambda answer: (len(answer), answer)):
        known = (number for number, first in enumerate(firsts) if equal(first, answer))
        found[answer] = next(known, len(firsts))
        if found[answer] == len(firsts):
            firsts.append(answer)
    appearance = {
        number: place for place, number in enumerate(dict.fromkeys(found[answer] for answer in answers))
    }
    return [appearance[found[answer]] for answer in answers]


def majority_vote(answers: Sequence[int], weights: Sequence[float] | None = None) -> int | None:
    """The answer with the largest sum of weights (1 each by default); None when every answer is -1.

    A tie, also one of all weights 0, goes to the answer seen first. Raises ValueError when the lengths differ or an answer's
    weight is negative or NaN.
    """
    votes = pooled_votes(answers, [1.0] * len(answers) if weights is None else weights)
    return next((answer for answer, vote in votes.items() if vote > max(votes.values()) - TIE), None)


def pooled_votes(answers: Sequence[int], weights: Sequence[float]) -> dict[int, float]:
    """Sum of weights of each answer, in the order in which answers were first seen; -1 is no answer and left out.

    Raises ValueError when the lengths differ or an answer's weight is negative or NaN.
    """
    pools: dict[int, list[float]] = {}
    for sample, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer == -1:
            continue
        if not weight >= 0:
            raise ValueError(
                f"the weight of sample {sample} is {weight}: clip scores to [0, 1], and give unfinished samples 0"
            )
        pools.setdefault(answer, []).append(weight)
    return {answer: math.fsum(pool) for answer, pool in pools.items()}


def fair_winner(
    votes: Float[np.ndarray, "*draws classes"],
    present: Bool[np.ndarray, "*draws classes"],
    correctness: Float[np.ndarray, "classes"],
) -> Float[np.ndarray, "*draws"]:
    """Expected correctness of a vote's winner under a fair choice among tied answers; 0 where no answer is present.

    No vote is negative, so that the answers that are present tie where all votes are 0.
    """
    if not len(correctness):
        return np.zeros(votes.shape[:-1])
    winners = present & (votes > votes.max(axis=-1, keepdims=True) - TIE)
    return winners @ correctness / np.maximum(winners.sum(axis=-1), 1)


def pass_at_k(problems: Sequence[Samples], k: int) -> Estimate:
    """Chance that k samples of a problem contain a correct one, exactly.

    Raises ValueError without problems, or unless k is from 1 to the samples of every problem. Source: Chen et al.
    (arXiv 2107.03374), equation 1.
    """
    _check_k(problems, k)
    wrong = [(len(samples), len(samples) - int(np.sum(samples.correct))) for samples in problems]
    return _exact([1 - math.comb(n_wrong, k) / math.comb(n, k) for n, n_wrong in wrong])


def best_of_k(problems: Sequence[Samples], k: int) -> Estimate:
    """Chance that the highest scored of k samples of a problem is correct, exactly; one without a scored sample counts as wrong.

    Equal scores share. Raises ValueError without problems or scores, or unless k is from 1 to the samples of every problem.
    """
    _check_k(problems, k)
    return _exact([_best_of_k(samples, k) for samples in problems])


def maj_at_k(problems: Sequence[Samples], k: int, seed: int = 0, draws: int = 4_000) -> Estimate:
    """Accuracy of the most frequent answer among k samples of a problem.

    Tied answers share; a subset without any answer counts as wrong. All subsets are taken where they are at most
    `EXACT_SUBSETS`, else `draws` of them, which depend on `seed`, k and the number of samples alone: plain and weighted votes
    see the same subsets. Raises ValueError without problems, or unless k is from 1 to the samples of every problem.
    """
    return _vote_at_k(problems, k, lambda samples: np.ones(len(samples)), seed, draws)


def weighted_maj_at_k(problems: Sequence[Samples], k: int, seed: int = 0, draws: int = 4_000) -> Estimate:
    """As `maj_at_k`, for the answer with the largest sum of scores, clipped to [0, 1] and 0 where unfinished (RM@K of LaSeR).

    Where all of a subset's weights are 0, all its answers tie. Raises ValueError without scores, and as `maj_at_k`.
    """
    return _vote_at_k(problems, k, lambda samples: samples.weights, seed, draws)


def _vote_at_k(
    problems: Sequence[Samples],
    k: int,
    weights: Callable[[Samples], Float[np.ndarray, "samples"]],
    seed: int,
    draws: int,
) -> Estimate:
    _check_k(problems, k)
    by_problem = np.zeros(len(problems))
    variance = 0.0
    for n in {len(samples) for samples in problems}:
        subsets = _subsets(n, k, seed, draws)
        same_size = [index for index, samples in enumerate(problems) if len(samples) == n]
        by_subset = np.zeros(len(subsets))
        for index in same_size:
            members, correctness = problems[index].classes()
            votes = subsets @ (members * weights(problems[index])[:, None])
            right = fair_winner(votes, subsets @ members.astype(np.float64) > 0, correctness)
            by_problem[index] = right.mean()
            by_subset += right
        if math.comb(n, k) > EXACT_SUBSETS:
            # Problems of one size share their subsets, so that the draw's error is that of the sum over them.
            variance += by_subset.var(ddof=1) / len(subsets)
    return Estimate(float(by_problem.mean()), math.sqrt(variance) / len(problems), by_problem)


def _subsets(n: int, k: int, seed: int, draws: int) -> Float[np.ndarray, "subsets n"]:
    """Subsets of k of n samples as rows of 0 and 1: all of them, or a seeded draw."""
    if math.comb(n, k) <= EXACT_SUBSETS:
        chosen = np.array(list(combinations(range(n), k)))
    else:
        chosen = np.random.default_rng([seed, n, k]).random((draws, n)).argpartition(k - 1, axis=1)[:, :k]
    subsets = np.zeros((len(chosen), n))
    np.put_along_axis(subsets, chosen, 1.0, axis=1)
    return subsets


def _best_of_k(samples: Samples, k: int) -> float:
    """Sum over scores of (chance that a subset's highest is that score) * (share of correct ones among the samples with it)."""
    n = len(samples)
    levels, level_of = np.unique(samples.by_score, return_inverse=True)
    size = np.bincount(level_of)
    correct = np.bincount(level_of, weights=np.asarray(samples.correct, float))
    up_to = size.cumsum()
    return sum(
        float(correct[level] / size[level])
        * (math.comb(int(up_to[level]), k) - math.comb(int(up_to[level] - size[level]), k))
        for level in np.flatnonzero(levels > -np.inf)
    ) / math.comb(n, k)


def _exact(by_problem: list[float]) -> Estimate:
    return Estimate(float(np.mean(by_problem)), 0.0, np.array(by_problem))


def _check_k(problems: Sequence[Samples], k: int) -> None:
    fewest = min((len(samples) for samples in problems), default=0)
    if not 1 <= k <= fewest:
        raise ValueError(
            f"k is {k}; it must be from 1 to {fewest}, the fewest samples of any of the {len(problems)} problems"
        )
