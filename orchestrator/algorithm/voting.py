"""The vote, and what k samples of a problem are worth: pass@k, Maj@k, weighted Maj@k and best-of-k.

This is the only vote: training, `laser eval` and the service call it. `majority_vote` decides one vote as the
service answers it. The figures at k take `ProblemSamples` and give an `Estimate`: the mean over problems of
the expectation over all subsets of k samples, which does not depend on the order of the samples.

A tie goes to the answer that was seen first in a single vote, and is shared equally in a figure. Over random
orders of the samples the two agree on average for answers that tie with equally many samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int

EXACT_SUBSETS = 10_000
"""A figure takes all subsets of a problem's samples up to this number, and draws subsets beyond it."""
TIE = 1e-9
"""Sums of weights that differ by less are a tie: a floating-point sum depends on the order of its terms."""


@dataclass(frozen=True)
class ProblemSamples:
    """The sampled solutions of one problem.

    Raises:
        ValueError: There is no sample, the columns have different lengths, or an answer is below -1.
    """

    answers: Int[np.ndarray, "samples"]
    """Class of the answer: equal answers share a number from 0 on; -1 has no vote."""
    correct: Bool[np.ndarray, "samples"]
    scores: Float[np.ndarray, "samples"] | None = None
    """Self-rewards, unclipped; NaN where unfinished. None without self-rewards."""
    tokens: Int[np.ndarray, "samples"] | None = None
    """Response tokens of each sample."""

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in vars(self).items() if column is not None}
        if len(set(lengths.values())) != 1 or not len(self.answers):
            raise ValueError(f"the samples of a problem need columns of one length above 0, not {lengths}")
        if np.min(self.answers) < -1:
            raise ValueError(
                f"an answer's class is {np.min(self.answers)}: count classes from 0, and use -1 for no vote"
            )

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def weights(self) -> Float[np.ndarray, "samples"]:
        """Weights of the weighted vote: scores clipped to [0, 1], 0 where unfinished.

        Raises:
            ValueError: There are no scores.
        """
        return vote_weights(self._scores)

    @property
    def by_score(self) -> Float[np.ndarray, "samples"]:
        """Scores to rank by, -inf where unfinished.

        Raises:
            ValueError: There are no scores.
        """
        return np.where(np.isnan(self._scores), -np.inf, self._scores)

    @property
    def _scores(self) -> Float[np.ndarray, "samples"]:
        if self.scores is None:
            raise ValueError("the samples have no scores, so there is no weighted vote and no best-of-k")
        return np.asarray(self.scores, np.float64)

    def classes(self) -> tuple[Bool[np.ndarray, "samples classes"], Float[np.ndarray, "classes"]]:
        """Which sample gives which answer, and the share of each answer's samples that are correct.

        Answers of one class are equal, so their verdicts should agree and the share should be 0 or 1.
        Verdicts differ when the verifier reads only one of two notations. Then an answer that wins counts by
        the share.
        """
        named, index = np.unique(self.answers, return_inverse=True)
        members = (index[:, None] == np.arange(len(named)))[:, named >= 0]
        return members, np.asarray(self.correct, np.float64) @ members / members.sum(axis=0)


@dataclass(frozen=True)
class Estimate:
    """A figure: the mean over problems."""

    value: float
    standard_error: float
    """Error of the random draw of subsets alone; 0 where all subsets were taken."""
    by_problem: Float[np.ndarray, "problems"] = field(compare=False, repr=False)
    """The values whose mean is `value`, for `bootstrap_interval` and `paired_difference`."""


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4 and so on up to n."""
    return [1 << power for power in range(n.bit_length())]


def vote_weights(scores: Float[np.ndarray, "samples"]) -> Float[np.ndarray, "samples"]:
    """Scores clipped to [0, 1]; 0 for NaN, an unfinished sample. Source: RM@K of LaSeR (arXiv 2510.14943)."""
    return np.clip(np.nan_to_num(np.asarray(scores, np.float64), nan=0.0), 0, 1)


def answer_classes(answers: Sequence[str], equal: Callable[[str, str], bool]) -> list[int]:
    """The class of each answer to one problem: equal answers share one, numbered from 0 in order of
    appearance.

    Each answer, the shortest first and then in order of the text, is compared with the first answer of every
    class found so far. Classes therefore depend neither on the order of the samples nor on `equal` being
    transitive. `equal` is not asked about equal texts.
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
    """The winner of one vote: the answer class with the largest sum of weights.

    A tie goes to the answer that was seen first, also when all weights are 0.

    Args:
        answers: Class of each sample's answer, from 0 on; -1 has no vote.
        weights: Weight of each sample, at least 0 (see `vote_weights`); 1 each unless given.

    Returns:
        The winning class; None when no sample has a vote.

    Raises:
        ValueError: The lengths differ, or the weight of an answer is negative or NaN.
    """
    votes = pooled_votes(answers, [1.0] * len(answers) if weights is None else weights)
    return next((answer for answer, vote in votes.items() if vote > max(votes.values()) - TIE), None)


def pooled_votes(answers: Sequence[int], weights: Sequence[float]) -> dict[int, float]:
    """Sum of weights of each answer class, in the order in which the classes were first seen; -1 is left out.

    Raises:
        ValueError: The lengths differ, or the weight of an answer is negative or NaN.
    """
    pools: dict[int, list[float]] = {}
    for sample, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer == -1:
            continue
        if not weight >= 0:
            raise ValueError(
                f"the weight of sample {sample} is {weight}: "
                "clip scores to [0, 1], and use 0 for unfinished samples"
            )
        pools.setdefault(answer, []).append(weight)
    return {answer: math.fsum(pool) for answer, pool in pools.items()}


def fair_winner(
    votes: Float[np.ndarray, "*draws classes"],
    present: Bool[np.ndarray, "*draws classes"],
    correctness: Float[np.ndarray, "classes"],
) -> Float[np.ndarray, "*draws"]:
    """Expected correctness of a vote's winner when tied answers share the win; 0 where no answer is present.

    Where all votes are 0, all present answers tie.

    Args:
        votes: Sum of weights of each class, at least 0.
        present: Whether any sample gives that class.
        correctness: Share of the samples of each class that are correct.
    """
    if not len(correctness):
        return np.zeros(votes.shape[:-1])
    winners = present & (votes > votes.max(axis=-1, keepdims=True) - TIE)
    return winners @ correctness / np.maximum(winners.sum(axis=-1), 1)


def pass_at_k(problems: Sequence[ProblemSamples], k: int) -> Estimate:
    """Chance that k samples of a problem contain a correct one, exactly.

    Source: Chen et al. (arXiv 2107.03374), equation 1.

    Raises:
        ValueError: There are no problems, or k is not from 1 to the samples of every problem.
    """
    _check_k(problems, k)
    wrong = [(len(samples), len(samples) - int(np.sum(samples.correct))) for samples in problems]
    return _exact([1 - math.comb(n_wrong, k) / math.comb(n, k) for n, n_wrong in wrong])


def best_of_k(problems: Sequence[ProblemSamples], k: int) -> Estimate:
    """Chance that the highest scored of k samples of a problem is correct, exactly.

    Equal scores share. A subset without a scored sample counts as wrong.

    Raises:
        ValueError: There are no problems or no scores, or k is not from 1 to the samples of every problem.
    """
    _check_k(problems, k)
    return _exact([_best_of_k(samples, k) for samples in problems])


def maj_at_k(problems: Sequence[ProblemSamples], k: int, seed: int = 0, draws: int = 4_000) -> Estimate:
    """Accuracy of the most frequent answer among k samples of a problem.

    Tied answers share. A subset without any vote counts as wrong. All subsets are taken where there are at
    most `EXACT_SUBSETS`, else `draws` of them. The draw depends on `seed`, k and the number of samples alone:
    plain and weighted votes see the same subsets.

    Raises:
        ValueError: There are no problems, or k is not from 1 to the samples of every problem.
    """
    return _vote_at_k(problems, k, lambda samples: np.ones(len(samples)), seed, draws)


def weighted_maj_at_k(
    problems: Sequence[ProblemSamples], k: int, seed: int = 0, draws: int = 4_000
) -> Estimate:
    """As `maj_at_k`, for the answer with the largest sum of `vote_weights`: RM@K of LaSeR (arXiv 2510.14943).

    Where all weights of a subset are 0, all its answers tie.

    Raises:
        ValueError: There are no scores; and as `maj_at_k`.
    """
    return _vote_at_k(problems, k, lambda samples: samples.weights, seed, draws)


def _vote_at_k(
    problems: Sequence[ProblemSamples],
    k: int,
    weights: Callable[[ProblemSamples], Float[np.ndarray, "samples"]],
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
            # Problems of one size share their subsets, so the error of the draw is that of their sum.
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


def _best_of_k(samples: ProblemSamples, k: int) -> float:
    """Sum over scores of P(it is a subset's highest) * (share of correct samples among those with it)."""
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


def _check_k(problems: Sequence[ProblemSamples], k: int) -> None:
    fewest = min((len(samples) for samples in problems), default=0)
    if not 1 <= k <= fewest:
        raise ValueError(
            f"k is {k}; it must be from 1 to {fewest}, "
            f"the fewest samples of any of the {len(problems)} problems"
        )
