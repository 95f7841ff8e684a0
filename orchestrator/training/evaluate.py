"""The held-out problems during training: sample, check, pool answers, score, and record the figures.

The figures are those of `laser eval` (evaluation/figures.py), so both give the same numbers for the same
samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from actors.verification import can_vote
from orchestrator.cluster.waits import fetched
from orchestrator.config.paths import SET_NAME_BYTES, short_name
from orchestrator.data.prompts import ProblemSet
from orchestrator.evaluation.answers import pool_answers
from orchestrator.evaluation.figures import SampleColumns, SetResults, set_results
from orchestrator.measures import Place, shown_in
from orchestrator.messages.requests import GroupRequest
from orchestrator.pools.collect import Batch, Group, save_samples, to_batch
from orchestrator.training.session import Session

EVALUATION_SEED = 2**40
"""Seed of the first sample; the next ones count up."""

MOST_KINDS = 50
"""Figures by kind are recorded for so many kinds of a set at most."""
HEADLINE = {
    "accuracy": "accuracy",
    "self_verification_f1": "F1",
    "auroc": "AUROC",
    "auroc_within_problem": "within problem",
    "maj_at_k": "Maj@k",
    "weighted_at_k": "weighted",
}


def evaluate_held_out(session: Session) -> dict[str, float] | None:
    """Evaluate the session's model on every held-out set, and record the figures of each and their mean.

    Returns:
        The figures by name, of the mean where there are several sets; NaN where the samples do not define
        one. None without held-out problems.

    Raises:
        StopRequested: Someone asked the run to stop.
    """
    sets, name = session.prepared.eval, session.prepared.eval_name
    if not sets:
        return None
    batch = session.collect([group for held_out in sets for group in _groups(session, held_out)])
    default = session.config.verification.verifier_text
    verifiers = [group.problem.verifier or default for group in batch.groups]
    with session.stop.interruptible():
        verdicts = [group.verdicts for group in batch.groups]
        classes = pool_answers(session.pools.verifiers, verdicts, verifiers)
    found, first = [], 0
    for held_out in sets:
        last = first + len(held_out.prompts)
        part = batch if not sets[1:] else to_batch(batch.groups[first:last])
        votes = all(map(can_vote, {*verifiers[first:last]}))
        found.append(_record(session, held_out.name, part, classes[first:last], votes))
        first = last
    figures = found[0]
    if sets[1:]:
        figures = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
        session.tracker.log_evaluation(name, session.step, figures, {}, None)
        session.say(headline_of(f"step {session.step}, {name} of {len(sets)} sets", figures))
    if 0 < session.step < session.config.run.steps:
        session.context.report(session.step, figures)
    return figures


def _record(
    session: Session, name: str, batch: Batch, classes: Sequence[Sequence[int]], votes: bool
) -> dict[str, float]:
    """Record the samples and figures of one set. Returns the figures."""
    # The service has no reference model, so an evaluation scores with the one c_ref too.
    scores = session.scores(batch, session.constant_reference(batch))
    if scores is not None and (broken := batch.finished & ~np.isfinite(scores)).any():
        session.note(f"{int(broken.sum())} scores of {name} are not finite, and left out of its figures")
        scores = np.where(broken, np.float32(np.nan), scores)
    columns = columns_of_batch(batch, scores, classes, votes)
    figures = held_out_figures(set_results(name, columns, tables=False))
    histogram = None
    drawn = batch.scored if scores is None else batch.scored & np.isfinite(scores)
    if scores is not None and drawn.any():
        title = f"{name}, step {session.step}"
        histogram = score_figure(scores[drawn], batch.correct[drawn], title)
    file = f"{short_name(name, SET_NAME_BYTES)}-{session.step:06d}.parquet"
    save_samples(session.config.folder / "evaluations" / file, batch, scores)
    table = sampled_solutions(batch, scores, session.config.tracking.sampled_solutions)
    by_kind = accuracy_by_kind(columns)
    session.tracker.log_evaluation(name, session.step, figures | by_kind, table, histogram)
    session.say(headline_of(f"step {session.step} on {name}", figures))
    return figures


def is_evaluated(session: Session) -> bool:
    """Whether the journal holds an evaluation of the last finished step."""
    return (session.prepared.eval_name, session.step) in session.tracker.journal.evaluations


def columns_of_batch(
    batch: Batch,
    scores: Float32[np.ndarray, "samples"] | None,
    classes: Sequence[Sequence[int]],
    votes: bool = True,
) -> SampleColumns:
    """What the figures depend on, of a batch.

    Args:
        scores: Self-reward of each sample, NaN where unfinished; None without a score.
        classes: Of the answers to each problem, as `pool_answers` numbers them.
        votes: As in `SampleColumns`.
    """
    kinds = np.array([group.problem.kind or "" for group in batch.groups])
    return SampleColumns(
        problem=batch.group,
        kind=kinds[batch.group],
        status=np.array([str(verdict.status) for verdict in batch.verdicts]),
        answer_class=np.array([number for numbers in classes for number in numbers]),
        score=np.full(len(batch.rewards), np.nan, np.float32) if scores is None else scores,
        finished=batch.finished,
        tokens=batch.lengths,
        rewards=batch.rewards,
        votes=votes,
    )


def accuracy_by_kind(samples: SampleColumns) -> dict[str, float]:
    """Accuracy on the problems of each kind, under `kind/<name>/accuracy`; empty for fewer than two kinds.

    Of many kinds, those with the most samples are taken.
    """
    kinds, counts = np.unique(samples.kind[samples.kind != ""], return_counts=True)
    if len(kinds) < 2:
        return {}
    most = sorted(kinds[np.argsort(-counts, kind="stable")[:MOST_KINDS]].tolist())
    rows = {kind: samples.verified & (samples.kind == kind) for kind in most}
    return {
        f"kind/{kind}/accuracy": float(samples.correct[chosen].mean()) if chosen.any() else float("nan")
        for kind, chosen in rows.items()
    }


def held_out_figures(results: SetResults) -> dict[str, float]:
    """The figures that a run records of an evaluation; NaN where the samples do not define one."""
    values = vars(results) | asdict(results.figures)
    return {measure.key: float(values[measure.key]) for measure in shown_in(Place.OBJECTIVE)}


def headline_of(title: str, figures: Mapping[str, float]) -> str:
    """The main figures in one line for the user, without those that are not defined."""
    shown = {label: figures[name] for name, label in HEADLINE.items() if not np.isnan(figures[name])}
    return f"{title}: " + "  ".join(f"{label} {value:.3f}" for label, value in shown.items())


def sampled_solutions(
    batch: Batch, scores: Float32[np.ndarray, "samples"] | None, count: int
) -> dict[str, list]:
    """The first sample of each of `count` problems spread over the set, as columns of a table."""
    numbers = np.unique(
        np.linspace(0, len(batch.groups) - 1, min(count, len(batch.groups))).round().astype(int)
    )
    texts = fetched([batch.groups[number].texts for number in numbers], "responses of an evaluation")
    first = [int(np.flatnonzero(batch.group == number)[0]) for number in numbers]
    verdicts = [batch.verdicts[index] for index in first]
    return {
        "problem": [batch.groups[number].problem.text for number in numbers],
        "reference": [batch.groups[number].problem.reference for number in numbers],
        "solution": [group_texts[0] for group_texts in texts],
        "verdict": [str(verdict.status) for verdict in verdicts],
        "detail": [verdict.detail for verdict in verdicts],
        "score": [
            None if scores is None or np.isnan(scores[index]) else round(float(scores[index]), 4)
            for index in first
        ],
        "finished": [bool(batch.finished[index]) for index in first],
    }


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


def _groups(session: Session, held_out: ProblemSet) -> list[Group]:
    """A held-out set as groups to generate; its samples have the same seeds in every evaluation."""
    prompts, samples = held_out.prompts, held_out.samples_per_problem
    temperature = session.config.evaluation.temperature
    return [
        Group(
            prompts.problems[index],
            GroupRequest(prompts.token_ids(index), samples, EVALUATION_SEED + index * samples, temperature),
        )
        for index in range(len(prompts))
    ]
