"""What an evaluation's samples say: figures of each set and their average, as the paper defines them.

In: checked and pooled samples. Out: `SetResults`, JSON-ready. Source of the protocol: LaSeR (arXiv 2510.14943), evaluation. Of the score's
own figures (F1, AUROC, calibration) unfinished samples are left out, as the paper does, and counted; so are those whose check failed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from orchestrator.algorithm import metrics
from orchestrator.algorithm.adaptive import CostPoint, accuracy_against_tokens
from orchestrator.algorithm.voting import (
    ProblemSamples,
    best_of_k,
    maj_at_k,
    pass_at_k,
    powers_of_two,
    weighted_maj_at_k,
)
from orchestrator.evaluation.samples import Sample, by_problem
from orchestrator.measures import measure_of

AVERAGE = "average"
BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True)
class AtK:
    """What k samples of a problem are worth; the errors are of drawn subsets, 0 where all were taken."""

    k: int
    pass_at_k: float
    maj_at_k: float
    maj_error: float
    weighted_at_k: float
    """NaN without a score."""
    weighted_error: float
    best_of_k: float


@dataclass(frozen=True)
class Figures:
    """Of a set, or the mean over sets. NaN where the samples do not define one: no score, or a class is absent."""

    accuracy: float
    """Mean over problems of the share of right samples among those that could be checked."""
    accuracy_low: float
    accuracy_high: float
    """95 % bootstrap interval over problems; of the average, over the problems of each set."""
    finished_share: float
    self_verification_f1: float
    """Harmonic mean of the two shares below, over finished samples."""
    accuracy_correct: float
    """Share of right samples that are scored above 0.5."""
    accuracy_wrong: float
    """Share of wrong samples that are scored at most 0.5."""
    f1_answered: float
    """The same over finished samples that give an answer: none of them can be told by its lack of one."""
    accuracy_correct_answered: float
    accuracy_wrong_answered: float
    auroc: float
    auroc_within_problem: float
    """Over pairs of samples of one problem."""
    ece: float
    """Expected calibration error."""
    response_tokens: float
    """Mean tokens of a sample."""


@dataclass(frozen=True)
class SetResults:
    """Everything that is reported of a set."""

    name: str
    problems: int
    samples: int
    samples_per_problem: int
    """The fewest of any problem: what k goes up to."""
    unfinished: int
    unverified: int
    """Samples whose check timed out or failed: neither right nor wrong, and without a vote."""
    mixed_problems: int
    """Problems with both right and wrong finished samples: what `auroc_within_problem` is measured on."""
    figures: Figures
    at_k: list[AtK]
    cost: list[CostPoint]
    """Accuracy against tokens: plain and weighted votes, and adaptive sampling."""
    accuracy_by_problem: Float[np.ndarray, "problems"] = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """Flat, for MLflow. `maj_at_k` and `weighted_at_k` are those of all samples of a problem."""
        values = asdict(self.figures)
        for row in self.at_k:
            values |= {
                f"pass_at_{row.k}": row.pass_at_k,
                f"maj_at_{row.k}": row.maj_at_k,
                f"weighted_at_{row.k}": row.weighted_at_k,
                f"best_of_{row.k}": row.best_of_k,
            }
        if self.at_k:
            values |= {"maj_at_k": self.at_k[-1].maj_at_k, "weighted_at_k": self.at_k[-1].weighted_at_k}
        return values


@dataclass(frozen=True)
class EvalResults:
    """What `evaluate` found."""

    folder: Path
    """Of `results.json`, `samples.jsonl` and `accuracy-against-tokens.png`."""
    model: str
    """Its origin."""
    score: dict[str, Any] | None
    """Token, c_ref, beta_v and origin of the score; None without one."""
    sets: list[SetResults]
    average: Figures
    """Mean of the figures over the sets."""
    undecided: int
    """Comparisons of two answers that timed out or failed; such answers count as different."""

    def tree(self) -> dict[str, Any]:
        """JSON-ready: NaN is null."""
        sets = [
            {
                key: value
                for key, value in vars(found).items()
                if key not in ("figures", "at_k", "cost", "accuracy_by_problem")
            }
            | {
                "figures": asdict(found.figures),
                "at_k": [asdict(row) for row in found.at_k],
                "cost": [_cost(point) for point in found.cost],
            }
            for found in self.sets
        ]
        return _json(
            {
                "model": self.model,
                "score": self.score,
                "sets": sets,
                AVERAGE: asdict(self.average),
                "undecided": self.undecided,
            }
        )


def set_results(name: str, samples: Sequence[Sample], scored: bool) -> SetResults:
    """The figures of one set; `scored` False for a model without a score."""
    groups = list(by_problem(samples).values())
    problems = [_votes(group, scored) for group in groups]
    fewest = min(len(group) for group in groups)
    accuracy = np.array([_mean([sample.correct for sample in group if sample.verified]) for group in groups])
    known = accuracy[~np.isnan(accuracy)]
    low, high = (
        metrics.bootstrap_interval(known, draws=BOOTSTRAP_DRAWS) if len(known) else (math.nan, math.nan)
    )
    quality, mixed = _quality(groups, scored)
    return SetResults(
        name=name,
        problems=len(groups),
        samples=len(samples),
        samples_per_problem=fewest,
        unfinished=sum(not sample.finished for sample in samples),
        unverified=sum(not sample.verified for sample in samples),
        mixed_problems=mixed,
        figures=Figures(
            accuracy=_mean(known),
            accuracy_low=low,
            accuracy_high=high,
            finished_share=_mean([sample.finished for sample in samples]),
            response_tokens=_mean([sample.tokens for sample in samples]),
            **quality,
        ),
        at_k=[_at_k(problems, k, scored) for k in powers_of_two(fewest)],
        cost=accuracy_against_tokens(problems),
        accuracy_by_problem=known,
    )


def average(sets: Sequence[SetResults]) -> Figures:
    """The mean over sets, each set the same weight; NaN where one set does not define a figure, for the rest would be another average."""
    values = {name: _mean([getattr(found.figures, name) for found in sets]) for name in vars(sets[0].figures)}
    if len(sets) > 1 and not math.isnan(values["accuracy"]):
        rng = np.random.default_rng(0)
        draws = [
            found.accuracy_by_problem[
                rng.integers(
                    len(found.accuracy_by_problem), size=(BOOTSTRAP_DRAWS, len(found.accuracy_by_problem))
                )
            ].mean(axis=1)
            for found in sets
        ]
        low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
        values |= {"accuracy_low": float(low), "accuracy_high": float(high)}
    return Figures(**values)


def _quality(groups: Sequence[Sequence[Sample]], scored: bool) -> tuple[dict[str, float], int]:
    """Figures of the score, and the number of problems with both classes."""
    usable = [
        (number, sample)
        for number, group in enumerate(groups)
        for sample in group
        if sample.verified and not math.isnan(sample.score)
    ]
    if not scored or not usable:
        return {name: math.nan for name in Figures.__annotations__ if measure_of(name).of_score}, 0
    scores = np.array([sample.score for _, sample in usable])
    correct = np.array([sample.correct for _, sample in usable])
    answered = np.array([sample.status != "no_answer" for _, sample in usable])
    ended = np.ones(len(usable), bool)
    overall = metrics.self_verification(scores, correct, ended)
    among_answered = metrics.self_verification(scores[answered], correct[answered], ended[answered])
    within, mixed = metrics.auroc_within_problem(scores, correct, np.array([number for number, _ in usable]))
    figures = {
        "self_verification_f1": overall.f1,
        "accuracy_correct": overall.accuracy_correct,
        "accuracy_wrong": overall.accuracy_wrong,
        "f1_answered": among_answered.f1,
        "accuracy_correct_answered": among_answered.accuracy_correct,
        "accuracy_wrong_answered": among_answered.accuracy_wrong,
        "auroc": metrics.auroc(scores, correct),
        "auroc_within_problem": within,
        "ece": metrics.expected_calibration_error(scores, correct),
    }
    return figures, mixed


def _votes(group: Sequence[Sample], scored: bool) -> ProblemSamples:
    return ProblemSamples(
        answers=np.array([-1 if sample.answer_class is None else sample.answer_class for sample in group]),
        correct=np.array([sample.correct for sample in group]),
        scores=np.array([sample.score for sample in group]) if scored else None,
        tokens=np.array([sample.tokens for sample in group]),
    )


def _at_k(problems: Sequence[ProblemSamples], k: int, scored: bool) -> AtK:
    majority = maj_at_k(problems, k)
    weighted = weighted_maj_at_k(problems, k) if scored else None
    return AtK(
        k=k,
        pass_at_k=pass_at_k(problems, k).value,
        maj_at_k=majority.value,
        maj_error=majority.standard_error,
        weighted_at_k=weighted.value if weighted else math.nan,
        weighted_error=weighted.standard_error if weighted else math.nan,
        best_of_k=best_of_k(problems, k).value if scored else math.nan,
    )


def _cost(point: CostPoint) -> dict[str, Any]:
    return {key: value for key, value in vars(point).items() if not key.endswith("_by_problem")}


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_json(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _mean(values: Iterable[float]) -> float:
    numbers = np.array(list(values), np.float64)
    return float(numbers.mean()) if len(numbers) else math.nan
