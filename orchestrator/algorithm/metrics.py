"""How well the self-reward tells right from wrong solutions: self-verification F1, AUROC and calibration error; errors over problems.

A value that the samples do not define, such as an AUROC of one class, is NaN.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

if TYPE_CHECKING:  # importing torch takes seconds, and nothing here calls it
    from torch import Tensor

    Array = np.ndarray | Tensor
else:
    Array = np.ndarray


@dataclass(frozen=True)
class SelfVerification:
    f1: float
    """Harmonic mean of the two accuracies."""
    accuracy_correct: float
    """Share of correct solutions scored above 0.5."""
    accuracy_wrong: float
    """Share of wrong solutions scored at most 0.5."""
    unfinished: int
    """Solutions left out because they have no end to score."""


def self_verification(
    scores: Float[Array, "samples"], correct: Bool[Array, "samples"], finished: Bool[Array, "samples"]
) -> SelfVerification:
    """How often `score > 0.5` agrees with the verifier, over finished samples. Source: LaSeR (arXiv 2510.14943), self-verification F1."""
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

    Takes finished samples only; raises ValueError on a NaN score.
    """
    concordant, pairs = _concordance(_scores(scores), np.asarray(correct, dtype=bool))
    return concordant / pairs if pairs else math.nan


def auroc_within_problem(
    scores: Float[Array, "samples"], correct: Bool[Array, "samples"], group: Int[Array, "samples"]
) -> tuple[float, int]:
    """AUROC over the pairs of samples of one problem, pooled over problems, and the number of problems with both classes.

    Knowing which problems are hard earns nothing here. NaN without such a problem. Takes finished samples only; raises
    ValueError on a NaN score.
    """
    scores, correct, group = _scores(scores), np.asarray(correct, dtype=bool), np.asarray(group)
    counts = [
        _concordance(scores[group == problem], correct[group == problem]) for problem in np.unique(group)
    ]
    pairs = sum(problem_pairs for _, problem_pairs in counts)
    mixed = sum(problem_pairs > 0 for _, problem_pairs in counts)
    return (sum(concordant for concordant, _ in counts) / pairs if pairs else math.nan), mixed


def auroc_problem_only(correct: Bool[Array, "samples"], kind: Shaped[Array, "samples"]) -> float:
    """AUROC of a score that knows only the problem: the mean accuracy of its kind (its difficulty class, or the problem itself).

    What the self-reward's `auroc` must exceed to say anything about the solution. NaN when a class is absent.
    """
    correct = np.asarray(correct, dtype=bool)
    _, index = np.unique(np.asarray(kind), return_inverse=True)
    return auroc((np.bincount(index, weights=correct) / np.bincount(index))[index], correct)


def expected_calibration_error(
    scores: Float[Array, "samples"], correct: Bool[Array, "samples"], bins: int = 10
) -> float:
    """Mean gap between score (clipped to [0, 1]) and accuracy over equally wide bins, weighted by samples; NaN without samples.

    Takes finished samples only; raises ValueError on a NaN score. Source: Guo et al. (arXiv 1706.04599), equation 3.
    """
    confidence = _scores(scores).clip(0, 1)
    correct = np.asarray(correct, dtype=bool)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    # |sum of confidences - number correct| of a bin is its gap times its samples.
    gaps = np.abs(np.bincount(bin_of, weights=confidence) - np.bincount(bin_of, weights=correct))
    return float(gaps.sum() / len(confidence)) if len(confidence) else math.nan


def bootstrap_interval(
    values_by_problem: Float[np.ndarray, "problems"], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over problems, which are drawn again with replacement; their samples are not.

    Says how the figure would vary over other problems of the same kind. Raises ValueError without problems, on a NaN value, or
    unless `level` is between 0 and 1. Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1, such as 0.95")
    values = _problem_values(values_by_problem)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    a_by_problem: Float[np.ndarray, "problems"], b_by_problem: Float[np.ndarray, "problems"]
) -> tuple[float, float]:
    """Mean of a - b over the same problems and its standard error: a beats b where the mean is above twice the error.

    The error is NaN for a single problem. Raises ValueError when the lengths differ, without problems, or on a NaN value.
    """
    a, b = _problem_values(a_by_problem), _problem_values(b_by_problem)
    if len(a) != len(b):
        raise ValueError(
            f"a has {len(a)} problems and b {len(b)}: a paired difference needs the same problems in the same order"
        )
    difference = a - b
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(a))) if len(
        a
    ) > 1 else math.nan


def _problem_values(values: Float[np.ndarray, "problems"]) -> Float[np.ndarray, "problems"]:
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or np.isnan(values).any():
        raise ValueError(
            f"{int(np.isnan(values).sum())} of {len(values)} problems have no value: leave those out, and keep at least one"
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
    """Pairs of a correct and a wrong sample in which the correct one scores higher (a tie is half a pair), and all such pairs."""
    right, wrong = scores[correct], np.sort(scores[~correct])
    below_or_tied = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below_or_tied.sum() / 2), len(right) * len(wrong)
