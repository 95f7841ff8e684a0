"""How well the self-reward separates correct from wrong solutions, and statistical errors over problems.

Self-verification F1, AUROC and calibration error take the samples of a set. A value that the samples do not
define, such as the AUROC of one class, is NaN.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

if TYPE_CHECKING:  # importing torch takes seconds, and this module does not call it
    from torch import Tensor

    Array = np.ndarray | Tensor
else:
    Array = np.ndarray


@dataclass(frozen=True)
class SelfVerification:
    """Agreement of the score, read as a verdict, with the verifier."""

    f1: float
    """Harmonic mean of the two accuracies."""
    accuracy_correct: float
    """Share of correct solutions scored above 0.5."""
    accuracy_wrong: float
    """Share of wrong solutions scored at most 0.5."""
    unfinished: int
    """Solutions left out: they have no EOS at which a score could be read."""


def self_verification(
    scores: Float[Array, "samples"], correct: Bool[Array, "samples"], finished: Bool[Array, "samples"]
) -> SelfVerification:
    """How often `score > 0.5` agrees with the verifier, over finished samples.

    Source: LaSeR (arXiv 2510.14943), self-verification F1.

    Raises:
        ValueError: The score of a finished sample is NaN.
    """
    finished = np.asarray(finished, dtype=bool)
    called_correct = _scores(scores, finished) > 0.5
    correct = np.asarray(correct, dtype=bool)[finished]
    accuracy_correct = _mean(called_correct[correct])
    accuracy_wrong = _mean(~called_correct[~correct])
    both = accuracy_correct + accuracy_wrong
    f1 = 2 * accuracy_correct * accuracy_wrong / both if both != 0 else 0.0
    return SelfVerification(f1, accuracy_correct, accuracy_wrong, int((~finished).sum()))


def auroc(scores: Float[Array, "samples"], correct: Bool[Array, "samples"]) -> float:
    """Chance that a correct sample scores above a wrong one, ties counting half; NaN when a class is absent.

    Takes finished samples only.

    Raises:
        ValueError: A score is NaN.
    """
    concordant, pairs = _concordance(_scores(scores), np.asarray(correct, dtype=bool))
    return concordant / pairs if pairs else math.nan


def auroc_within_problem(
    scores: Float[Array, "samples"], correct: Bool[Array, "samples"], group: Int[Array, "samples"]
) -> tuple[float, int]:
    """AUROC over pairs of samples of the same problem, and the number of problems with both classes.

    Pairs are pooled over problems. A score that knows only which problems are hard gets 0.5. NaN when no
    problem has both classes. Takes finished samples only.

    Raises:
        ValueError: A score is NaN.
    """
    scores, correct, group = _scores(scores), np.asarray(correct, dtype=bool), np.asarray(group)
    counts = [
        _concordance(scores[group == problem], correct[group == problem]) for problem in np.unique(group)
    ]
    pairs = sum(problem_pairs for _, problem_pairs in counts)
    mixed = sum(problem_pairs > 0 for _, problem_pairs in counts)
    return (sum(concordant for concordant, _ in counts) / pairs if pairs else math.nan), mixed


def auroc_problem_only(correct: Bool[Array, "samples"], kind: Shaped[Array, "samples"]) -> float:
    """AUROC of a score that knows only the problem: the mean accuracy of the problem's kind.

    A kind is a difficulty class, or the problem itself. A self-reward whose `auroc` is not higher says
    nothing about the solution. NaN when a class is absent.
    """
    correct = np.asarray(correct, dtype=bool)
    _, index = np.unique(np.asarray(kind), return_inverse=True)
    return auroc((np.bincount(index, weights=correct) / np.bincount(index))[index], correct)


def expected_calibration_error(
    scores: Float[Array, "samples"], correct: Bool[Array, "samples"], bins: int = 10
) -> float:
    """Mean gap between score (clipped to [0, 1]) and accuracy over equally wide bins, weighted by samples.

    NaN without samples. Takes finished samples only. Source: Guo et al. (arXiv 1706.04599), equation 3.

    Raises:
        ValueError: A score is NaN.
    """
    confidence = _scores(scores).clip(0, 1)
    correct = np.asarray(correct, dtype=bool)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    # |sum of confidences - number of correct samples| of a bin is its gap times its number of samples.
    gaps = np.abs(np.bincount(bin_of, weights=confidence) - np.bincount(bin_of, weights=correct))
    return float(gaps.sum() / len(confidence)) if len(confidence) else math.nan


def bootstrap_interval(
    values_by_problem: Float[np.ndarray, "problems"],
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
    weights: Float[np.ndarray, "problems"] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over problems.

    It says how the figure varies over other problems of this kind. Problems are drawn with replacement, each
    with all its samples. Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.

    Args:
        weights: Weight of each problem in the mean, such as its number of samples; equal unless given.

    Raises:
        ValueError: There are no problems, a value is NaN, or `level` is not between 0 and 1.
    """
    means = bootstrap_means(values_by_problem, draws, np.random.default_rng(seed), weights)
    return central_interval(means, level)


def bootstrap_means(
    values_by_problem: Float[np.ndarray, "problems"],
    draws: int,
    rng: np.random.Generator,
    weights: Float[np.ndarray, "problems"] | None = None,
) -> Float[np.ndarray, "draws"]:
    """Weighted means over problems that are drawn with replacement (see `bootstrap_interval`).

    Raises:
        ValueError: There are no problems, or a value is NaN.
    """
    values = _problem_values(values_by_problem)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    weighted = values * weights
    means = []
    for start in range(0, draws, 500):  # a few draws at once: all of them may not fit into memory
        problems = rng.integers(len(values), size=(min(500, draws - start), len(values)))
        means.append(weighted[problems].sum(axis=1) / weights[problems].sum(axis=1))
    return np.concatenate(means)


def central_interval(means: Float[np.ndarray, "draws"], level: float = 0.95) -> tuple[float, float]:
    """The quantiles that leave (1 - level) / 2 of the draws on either side.

    Raises:
        ValueError: `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1, such as 0.95")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    a_by_problem: Float[np.ndarray, "problems"], b_by_problem: Float[np.ndarray, "problems"]
) -> tuple[float, float]:
    """Mean of a - b over the same problems, and its standard error.

    a beats b where the mean is above twice the error. The error is NaN for a single problem.

    Raises:
        ValueError: The lengths differ, there are no problems, or a value is NaN.
    """
    a, b = _problem_values(a_by_problem), _problem_values(b_by_problem)
    if len(a) != len(b):
        raise ValueError(
            f"a has {len(a)} problems and b {len(b)}: "
            "a paired difference needs the same problems in the same order"
        )
    difference = a - b
    error = float(difference.std(ddof=1) / math.sqrt(len(a))) if len(a) > 1 else math.nan
    return float(difference.mean()), error


def _problem_values(values: Float[np.ndarray, "problems"]) -> Float[np.ndarray, "problems"]:
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or np.isnan(values).any():
        raise ValueError(
            f"{int(np.isnan(values).sum())} of {len(values)} problems have no value: "
            "leave those out, and keep at least one"
        )
    return values


def _scores(
    scores: Float[Array, "samples"], finished: Bool[np.ndarray, "samples"] | None = None
) -> Float[np.ndarray, "scored"]:
    values = np.asarray(scores, dtype=np.float64)
    values = values if finished is None else values[finished]
    if np.isnan(values).any():
        raise ValueError(
            f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN: leave unfinished samples out"
        )
    return values


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _concordance(
    scores: Float[np.ndarray, "samples"], correct: Bool[np.ndarray, "samples"]
) -> tuple[float, int]:
    """Pairs of a correct and a wrong sample: those with the correct one higher (a tie is half), and all."""
    right, wrong = scores[correct], np.sort(scores[~correct])
    below_or_tied = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below_or_tied.sum() / 2), len(right) * len(wrong)
