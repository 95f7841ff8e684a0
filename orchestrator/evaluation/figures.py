"""The figures of an evaluation, in training and by `laser eval`: one definition of each, as in the paper.

In: checked samples as columns, with the classes of their answers. Out: `SetResults`, JSON-ready. Source of
the protocol: LaSeR (arXiv 2510.14943), evaluation. The score's own figures (F1, AUROC, calibration) leave out
unfinished samples, as the paper does, and samples whose check timed out or failed; the results count both.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

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
from orchestrator.evaluation.answers import NO_VOTE
from orchestrator.evaluation.samples import EvalSample, by_problem
from orchestrator.measures import AVERAGE
from orchestrator.messages.verdicts import UNJUDGED, Status

BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True)
class SampleColumns:
    """Everything that figures depend on: a row for each sample, problem after problem."""

    problem: Int[np.ndarray, "samples"]
    """Number of its problem."""
    kind: Shaped[np.ndarray, "samples"]
    """The problem's kind; empty for none."""
    status: Shaped[np.ndarray, "samples"]
    """A `Status`."""
    answer_class: Int[np.ndarray, "samples"]
    """Class of its answer among those to the problem, or NO_VOTE."""
    score: Float[np.ndarray, "samples"]
    """Self-reward; NaN when unfinished or without a score."""
    finished: Bool[np.ndarray, "samples"]
    """Whether the response ended by itself, with an EOS token."""
    tokens: Int[np.ndarray, "samples"]
    """Response tokens."""
    rewards: Float[np.ndarray, "samples"] | None = None
    """0 to 1, NaN where the check timed out or failed; None takes 1 for correct samples and 0 for others."""
    votes: bool = True
    """Whether the answers to all problems can be pooled, so that there are votes."""

    @cached_property
    def correct(self) -> Bool[np.ndarray, "samples"]:
        """Samples with the right answer."""
        return self.status == Status.CORRECT

    @cached_property
    def verified(self) -> Bool[np.ndarray, "samples"]:
        """Samples whose check neither timed out nor failed."""
        return ~np.isin(self.status, UNJUDGED)

    @cached_property
    def scored(self) -> Bool[np.ndarray, "samples"]:
        """Samples that have a score and are known to be correct or wrong."""
        return self.verified & self.finished & ~np.isnan(self.score)


@dataclass(frozen=True)
class AtK:
    """Figures of k samples of a problem. Errors are those of drawn subsets, 0 where all subsets were
    taken."""

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
    """Figures of a set, or their mean over sets. NaN where the samples do not define one: no score, or one
    class."""

    accuracy: float
    """Share of correct samples, over all samples that could be checked."""
    reward: float
    """Mean reward, over the same samples; equal to the accuracy unless rewards are graded."""
    accuracy_low: float
    accuracy_high: float
    """95 % bootstrap interval over problems; of the average, over the problems of each set."""
    finished_share: float
    self_verification_f1: float
    """Harmonic mean of the two shares below, over finished samples."""
    accuracy_correct: float
    """Share of correct samples that are scored above 0.5."""
    accuracy_wrong: float
    """Share of wrong samples that are scored at most 0.5."""
    f1_answered: float
    """The same over finished samples with an answer: the lack of an answer, which is easy to see, does not
    count."""
    accuracy_correct_answered: float
    accuracy_wrong_answered: float
    auroc: float
    auroc_within_problem: float
    """Over pairs of samples of one problem."""
    auroc_problem_only: float
    """AUROC of a score that knows only the mean accuracy of the problem's kind."""
    ece: float
    """Expected calibration error."""
    maj_at_k: float
    """Accuracy of the vote over all samples of a problem; NaN where the verifier cannot compare answers."""
    weighted_at_k: float
    """The same with votes weighted by score."""
    response_tokens: float
    """Mean tokens of a sample."""


@dataclass(frozen=True)
class SetResults:
    """All results of a set."""

    name: str
    problems: int
    samples: int
    samples_per_problem: int
    """The fewest samples of any problem, and the largest k."""
    unfinished: int
    unverified: int
    """Samples whose check timed out or failed: they are neither correct nor wrong, and have no vote."""
    mixed_problems: int
    """Problems with correct and wrong finished samples, over which `auroc_within_problem` is measured."""
    figures: Figures
    at_k: list[AtK]
    """For rising k; the last row is over all samples of a problem. Empty when no sample could be checked."""
    cost: list[CostPoint]
    """Accuracy against tokens: plain and weighted votes, and adaptive sampling."""
    accuracy_by_problem: Float[np.ndarray, "problems"] = field(repr=False)
    """Over the checked samples of each problem that has any."""
    verified_by_problem: Int[np.ndarray, "problems"] = field(repr=False)
    """Number of these samples."""

    def metrics(self) -> dict[str, float]:
        """The figures and those at each k, flat, for MLflow."""
        values = asdict(self.figures)
        for row in self.at_k:
            values |= {
                f"pass_at_{row.k}": row.pass_at_k,
                f"maj_at_{row.k}": row.maj_at_k,
                f"weighted_at_{row.k}": row.weighted_at_k,
                f"best_of_{row.k}": row.best_of_k,
            }
        return values

    def tree(self) -> dict[str, Any]:
        """The entry in results.json; numbers that are not defined are NaN."""
        return {
            "name": self.name,
            "problems": self.problems,
            "samples": self.samples,
            "samples_per_problem": self.samples_per_problem,
            "unfinished": self.unfinished,
            "unverified": self.unverified,
            "mixed_problems": self.mixed_problems,
            "figures": asdict(self.figures),
            "at_k": [asdict(row) for row in self.at_k],
            "cost": [_without_problems(point) for point in self.cost],
        }


@dataclass(frozen=True)
class EvalResults:
    """The results of `laser eval`."""

    folder: Path
    """Folder of `results.json`, `samples.jsonl` and `accuracy-against-tokens.png`."""
    model: str
    """Where the model comes from."""
    score: dict[str, Any] | None
    """Token, c_ref, beta_v and origin of the score; None without one."""
    sets: list[SetResults]
    average: Figures
    """Mean of the figures over the sets."""
    undecided: int
    """Comparisons of two answers that timed out or failed; such answers count as different."""

    def tree(self) -> dict[str, Any]:
        """JSON-ready: NaN becomes null."""
        return _json_ready(
            {
                "model": self.model,
                "score": self.score,
                "sets": [found.tree() for found in self.sets],
                AVERAGE: asdict(self.average),
                "undecided": self.undecided,
            }
        )


def columns_of(samples: Iterable[EvalSample], votes: bool = True) -> SampleColumns:
    """The samples of one set as columns; `votes` as in `SampleColumns`."""
    rows = [(number, sample) for number, group in enumerate(by_problem(samples).values()) for sample in group]
    classes = [NO_VOTE if sample.answer_class is None else sample.answer_class for _, sample in rows]
    return SampleColumns(
        problem=np.array([number for number, _ in rows]),
        kind=np.array([sample.kind or "" for _, sample in rows]),
        status=np.array([sample.status for _, sample in rows]),
        answer_class=np.array(classes),
        score=np.array([sample.score for _, sample in rows]),
        finished=np.array([sample.finished for _, sample in rows]),
        tokens=np.array([sample.tokens for _, sample in rows]),
        rewards=_rewards_of([sample for _, sample in rows]),
        votes=votes,
    )


def _rewards_of(samples: Sequence[EvalSample]) -> Float[np.ndarray, "samples"] | None:
    """None where the samples were written by a version without rewards."""
    verified = [sample for sample in samples if sample.status not in UNJUDGED]
    if any(sample.reward is None for sample in verified):
        return None
    return np.array([math.nan if sample.reward is None else sample.reward for sample in samples])


def set_results(name: str, samples: SampleColumns, tables: bool = True) -> SetResults:
    """The results of one set.

    Args:
        samples: At least one.
        tables: False leaves out `cost` and all rows of `at_k` but the last. They take longer than the
            figures, and training does not record them.
    """
    problem_rows = _rows_by_problem(samples)
    fewest = min(len(rows) for rows in problem_rows)
    checked = [rows[samples.verified[rows]] for rows in problem_rows]
    rewards = samples.correct if samples.rewards is None else samples.rewards
    accuracy = np.array([samples.correct[rows].mean() for rows in checked if len(rows)])
    numbers = np.array([len(rows) for rows in checked if len(rows)])
    # Nobody knows the right winner of a problem without a checked sample; accuracy leaves it out too.
    problems = [
        _problem_samples(samples, rows)
        for rows, known in zip(problem_rows, checked, strict=True)
        if len(known)
    ]
    at_k = [_at_k(problems, k, samples.votes) for k in _sizes(fewest, tables)] if problems else []
    quality, mixed = _quality(samples)
    return SetResults(
        name=name,
        problems=len(problem_rows),
        samples=len(samples.problem),
        samples_per_problem=fewest,
        unfinished=int((~samples.finished).sum()),
        unverified=int((~samples.verified).sum()),
        mixed_problems=mixed,
        figures=Figures(
            accuracy=_mean32(samples.correct[samples.verified]),
            reward=_mean32(rewards[samples.verified]),
            **_interval(accuracy, numbers),
            finished_share=float(samples.finished.mean()),
            maj_at_k=at_k[-1].maj_at_k if at_k else math.nan,
            weighted_at_k=at_k[-1].weighted_at_k if at_k else math.nan,
            response_tokens=float(samples.tokens.mean()),
            **quality,
        ),
        at_k=at_k,
        cost=accuracy_against_tokens(problems) if tables and problems and samples.votes else [],
        accuracy_by_problem=accuracy,
        verified_by_problem=numbers,
    )


def average(sets: Sequence[SetResults]) -> Figures:
    """The mean over sets, each with the same weight.

    A figure that one set does not define is NaN: the mean of the others would be another average.
    """
    values = {
        name: float(np.mean([getattr(found.figures, name) for found in sets]))
        for name in vars(sets[0].figures)
    }
    if len(sets) > 1 and not math.isnan(values["accuracy"]):
        rng = np.random.default_rng(0)
        means = [
            metrics.bootstrap_means(
                found.accuracy_by_problem, BOOTSTRAP_DRAWS, rng, found.verified_by_problem
            )
            for found in sets
        ]
        values |= _bounds(metrics.central_interval(np.mean(means, axis=0)))
    return Figures(**values)


def _mean32(values: Shaped[np.ndarray, "samples"]) -> float:
    """In float32, like the rewards of a training batch, whose accuracy has then the same digits."""
    return float(values.astype(np.float32).mean()) if len(values) else math.nan


def _interval(
    accuracy: Float[np.ndarray, "problems"], samples: Int[np.ndarray, "problems"]
) -> dict[str, float]:
    if not len(accuracy):
        return _bounds((math.nan, math.nan))
    return _bounds(metrics.bootstrap_interval(accuracy, draws=BOOTSTRAP_DRAWS, weights=samples))


def _bounds(interval: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("accuracy_low", "accuracy_high"), interval, strict=True))


def _quality(samples: SampleColumns) -> tuple[dict[str, float], int]:
    """The score's own figures, and the number of problems with both classes."""
    names = (
        "self_verification_f1", "accuracy_correct", "accuracy_wrong",
        "f1_answered", "accuracy_correct_answered", "accuracy_wrong_answered",
        "auroc", "auroc_within_problem", "auroc_problem_only", "ece",
    )  # fmt: skip
    scored = samples.scored
    if not scored.any():
        return dict.fromkeys(names, math.nan), 0
    scores, correct = samples.score[scored], samples.correct[scored]
    answered = samples.status[scored] != Status.NO_ANSWER
    within, mixed = metrics.auroc_within_problem(scores, correct, samples.problem[scored])
    figures = (
        *_self_verification(scores, correct),
        *_self_verification(scores[answered], correct[answered]),
        metrics.auroc(scores, correct),
        within,
        metrics.auroc_problem_only(correct, samples.kind[scored]),
        metrics.expected_calibration_error(scores, correct),
    )
    return dict(zip(names, figures, strict=True)), mixed


def _self_verification(
    scores: Float[np.ndarray, "samples"], correct: Bool[np.ndarray, "samples"]
) -> tuple[float, float, float]:
    found = metrics.self_verification(scores, correct, np.ones(len(scores), bool))
    return found.f1, found.accuracy_correct, found.accuracy_wrong


def _rows_by_problem(samples: SampleColumns) -> list[Int[np.ndarray, "rows"]]:
    """The rows of each problem, in their order."""
    order = np.argsort(samples.problem, kind="stable")
    starts = np.unique(samples.problem[order], return_index=True)[1]
    return np.split(order, starts[1:])


def _problem_samples(samples: SampleColumns, rows: Int[np.ndarray, "rows"]) -> ProblemSamples:
    return ProblemSamples(
        answers=samples.answer_class[rows],
        correct=samples.correct[rows],
        scores=samples.score[rows] if samples.scored.any() else None,
        tokens=samples.tokens[rows],
    )


def _sizes(samples: int, tables: bool) -> list[int]:
    """Every k of the table."""
    return sorted({*powers_of_two(samples), samples}) if tables else [samples]


def _at_k(problems: Sequence[ProblemSamples], k: int, votes: bool) -> AtK:
    scored = problems[0].scores is not None
    majority = maj_at_k(problems, k) if votes else None
    weighted = weighted_maj_at_k(problems, k) if scored and votes else None
    return AtK(
        k=k,
        pass_at_k=pass_at_k(problems, k).value,
        maj_at_k=majority.value if majority else math.nan,
        maj_error=majority.standard_error if majority else math.nan,
        weighted_at_k=weighted.value if weighted else math.nan,
        weighted_error=weighted.standard_error if weighted else math.nan,
        best_of_k=best_of_k(problems, k).value if scored else math.nan,
    )


def _without_problems(point: CostPoint) -> dict[str, Any]:
    return {key: value for key, value in vars(point).items() if not key.endswith("_by_problem")}


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_json_ready(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
