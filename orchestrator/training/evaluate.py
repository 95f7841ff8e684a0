"""Evaluation on held-out problems: accuracy, how well the score tells right from wrong, and voting.

In: a batch of generated and verified groups with their scores. Out: `Evaluation`, a flat set of figures. Source of the protocol:
LaSeR (arXiv 2510.14943), evaluation; unfinished samples are left out of everything that needs a score, and counted.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from jaxtyping import Bool, Float32

from orchestrator.algorithm import metrics
from orchestrator.algorithm.voting import majority_vote
from orchestrator.messages.requests import GroupRequest
from orchestrator.pools.collect import Batch, Group, save_samples
from orchestrator.training.session import Session


@dataclass(frozen=True)
class Evaluation:
    """Figures of one evaluation; NaN where the samples do not define one (no score, or a class is absent)."""

    accuracy: float
    finished_share: float
    self_verification_f1: float
    accuracy_correct: float
    """Share of correct solutions that the score calls correct."""
    accuracy_wrong: float
    """Share of wrong solutions that the score calls wrong."""
    auroc: float
    auroc_within_problem: float
    auroc_problem_only: float
    """AUROC of a score that knows only the mean accuracy of the problem's kind."""
    mixed_problems: int
    """Problems with both right and wrong samples: what `auroc_within_problem` is measured on."""
    ece: float
    maj_at_k: float
    weighted_at_k: float
    response_tokens: float
    unverified: int
    """Samples whose check timed out or failed; they count neither as right nor as wrong."""

    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in asdict(self).items()}


def evaluate(session: Session) -> dict[str, float] | None:
    """Evaluate the session's model on the held-out problems, and record the figures; None without such problems."""
    problems, name = session.prepared.eval, session.prepared.eval_name
    if problems is None:
        return None
    settings = session.config.evaluation
    samples = settings.samples_per_problem
    groups = [
        Group(
            problems.problems[index],
            GroupRequest(
                problems.token_ids(index), samples, EVALUATION_SEED + index * samples, settings.temperature
            ),
        )
        for index in range(len(problems))
    ]
    batch = session.collect(groups)
    # As a service will score it: from the model and its one c_ref alone.
    scores = session.scores(batch, session.constant_reference(batch))
    evaluation = summarise(batch, scores)
    figure = None
    if scores is not None and batch.scored.any():
        figure = score_figure(
            scores[batch.scored], batch.rewards[batch.scored] > 0, f"{name}, step {session.step}"
        )
    save_samples(session.config.folder / "evaluations" / f"{name}-{session.step:06d}.parquet", batch, scores)
    table = sampled_solutions(batch, scores, session.config.tracking.sampled_solutions)
    session.tracker.log_evaluation(name, session.step, evaluation.metrics(), table, figure)
    session.say(describe(f"step {session.step} on {name}", evaluation))
    if 0 < session.step < session.config.run.steps:
        session.context.report(session.step, evaluation.metrics())
    return evaluation.metrics()


def is_evaluated(session: Session) -> bool:
    """Whether the journal holds an evaluation of the last finished step."""
    return (session.prepared.eval_name, session.step) in session.tracker.journal.evaluations


def summarise(batch: Batch, scores: Float32[np.ndarray, "samples"] | None) -> Evaluation:
    """The figures of an evaluated batch; `scores` None for a model without self-reward."""
    nan = float("nan")
    verified, correct = batch.verified, batch.rewards > 0
    answers = [verdict.answer for verdict in batch.verdicts]
    vote = {"maj_at_k": _vote(batch, answers, None), "weighted_at_k": nan}
    scored = batch.scored
    self_verification = metrics.SelfVerification(nan, nan, nan, int((~batch.finished).sum()))
    within, mixed, auroc, ece, problem_only = nan, 0, nan, nan, nan
    if scores is not None and scored.any():
        self_verification = metrics.self_verification(
            scores[verified], correct[verified], batch.finished[verified]
        )
        auroc = metrics.auroc(scores[scored], correct[scored])
        within, mixed = metrics.auroc_within_problem(scores[scored], correct[scored], batch.group[scored])
        ece = metrics.expected_calibration_error(scores[scored], correct[scored])
        kinds = np.array([group.problem.kind or "" for group in batch.groups])[batch.group]
        problem_only = metrics.auroc_problem_only(correct[scored], kinds[scored])
        vote["weighted_at_k"] = _vote(batch, answers, np.where(batch.finished, np.clip(scores, 0, 1), 0.0))
    return Evaluation(
        accuracy=batch.accuracy,
        finished_share=float(batch.finished.mean()),
        self_verification_f1=self_verification.f1,
        accuracy_correct=self_verification.accuracy_correct,
        accuracy_wrong=self_verification.accuracy_wrong,
        auroc=auroc,
        auroc_within_problem=within,
        auroc_problem_only=problem_only,
        mixed_problems=mixed,
        ece=ece,
        response_tokens=float(batch.lengths.mean()),
        unverified=int((~verified).sum()),
        **vote,
    )


def describe(title: str, evaluation: Evaluation) -> str:
    """One line for a person."""
    figures = {
        "accuracy": evaluation.accuracy,
        "F1": evaluation.self_verification_f1,
        "AUROC": evaluation.auroc,
        "within problem": evaluation.auroc_within_problem,
        "Maj@k": evaluation.maj_at_k,
        "weighted": evaluation.weighted_at_k,
    }
    return f"{title}: " + "  ".join(
        f"{name} {value:.3f}" for name, value in figures.items() if not np.isnan(value)
    )


def sampled_solutions(
    batch: Batch, scores: Float32[np.ndarray, "samples"] | None, count: int
) -> dict[str, list]:
    """A table of the first sample of `count` problems spread over the set: problem, solution, verdict and score."""
    numbers = np.unique(
        np.linspace(0, len(batch.groups) - 1, min(count, len(batch.groups))).round().astype(int)
    )
    texts = ray.get([batch.groups[number].texts for number in numbers])
    first = [int(np.flatnonzero(batch.group == number)[0]) for number in numbers]
    verdicts = [batch.verdicts[index] for index in first]
    return {
        "problem": [batch.groups[number].problem.text for number in numbers],
        "reference": [batch.groups[number].problem.answer for number in numbers],
        "solution": [group_texts[0] for group_texts in texts],
        "verdict": [str(verdict.status) for verdict in verdicts],
        "score": [
            None if scores is None or np.isnan(scores[index]) else round(float(scores[index]), 4)
            for index in first
        ],
        "finished": [bool(batch.finished[index]) for index in first],
    }


def _vote(batch: Batch, answers: Sequence[str | None], weights: np.ndarray | None) -> float:
    """Accuracy of the vote over the checked samples; a tie goes to the answer that came first.

    Answers that match the reference are one answer however they are written; others are told apart by text.
    """
    correct = batch.rewards > 0
    pooled = ["\0right" if right else answer for answer, right in zip(answers, correct, strict=True)]
    number_of = {
        answer: number
        for number, answer in enumerate(dict.fromkeys(answer for answer in pooled if answer is not None))
    }
    classes = np.array([-1 if answer is None else number_of[answer] for answer in pooled])
    checked = [
        np.flatnonzero((batch.group == number) & batch.verified) for number in range(len(batch.groups))
    ]
    winners = [
        majority_vote(classes[samples].tolist(), None if weights is None else weights[samples].tolist())
        for samples in checked
        if len(samples)
    ]
    return (
        float(np.mean([winner is not None and winner == number_of.get("\0right") for winner in winners]))
        if winners
        else math.nan
    )


def score_figure(
    scores: Float32[np.ndarray, "samples"], correct: Bool[np.ndarray, "samples"], title: str
) -> Any:
    """Histogram of the self-reward scores of correct and of wrong solutions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(min(-0.5, float(scores.min())), max(1.5, float(scores.max())), 41).tolist()
    axes.hist(
        scores[correct], bins=bins, alpha=0.6, color="tab:green", label=f"correct ({int(correct.sum())})"
    )
    axes.hist(
        scores[~correct], bins=bins, alpha=0.6, color="tab:red", label=f"wrong ({int((~correct).sum())})"
    )
    axes.axvline(0.5, color="black", linewidth=1, linestyle="--", label="threshold 0.5")
    axes.set(xlabel="self-reward score", ylabel="solutions", title=title)
    axes.legend()
    return figure


EVALUATION_SEED = 2**40
