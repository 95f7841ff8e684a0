"""The figures of an evaluated batch against values worked out by hand."""

import math

import numpy as np
import pytest

from orchestrator.data.problems import Problem
from orchestrator.messages.trajectories import GroupSummary
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import CheckedGroup, to_batch
from orchestrator.training.evaluate import describe, score_figure, summarise

NAN = math.nan
CORRECT, WRONG, NO_ANSWER, TIMEOUT, ERROR = (
    Status.CORRECT,
    Status.WRONG,
    Status.NO_ANSWER,
    Status.TIMEOUT,
    Status.ERROR,
)


def group(name, samples, kind=None):
    """`samples`: (status, answer, finished, tokens) each."""
    count = len(samples)
    finished = np.array([sample[2] for sample in samples])
    return CheckedGroup(
        Problem(name, f"problem {name}", "1", kind, 1),
        trajectories="trajectories",
        texts="texts",
        summary=GroupSummary(
            prompt_tokens=2,
            lengths=np.array([sample[3] for sample in samples], np.int32),
            finished=finished,
            z_logprobs=np.where(finished, -20.0, NAN).astype(np.float32),
            versions=np.zeros((count, 2), np.int32),
        ),
        verdicts=[Verdict(status, answer) for status, answer, _, _ in samples],
    )


@pytest.fixture
def batch():
    """Two problems of two kinds; one sample is cut off, one could not be checked."""
    return to_batch(
        [
            group(
                "a",
                [
                    (CORRECT, "1", True, 10),
                    (WRONG, "2", True, 20),
                    (WRONG, "2", True, 30),
                    (NO_ANSWER, None, False, 40),
                ],
                "easy",
            ),
            group(
                "b",
                [
                    (CORRECT, "1", True, 10),
                    (CORRECT, "1.0", True, 10),
                    (WRONG, "3", True, 10),
                    (TIMEOUT, "1", True, 30),
                ],
                "hard",
            ),
        ]
    )


SCORES = np.array([0.9, 0.2, 0.6, NAN, 0.8, 0.4, 0.7, 0.99], np.float32)


def test_every_figure_by_hand(batch):
    figures = summarise(batch, SCORES)
    assert figures.accuracy == pytest.approx(3 / 7)  # of the samples that could be checked
    assert figures.finished_share == 7 / 8
    assert figures.unverified == 1
    assert figures.response_tokens == 20
    # Correct ones score 0.9, 0.8 and 0.4, wrong ones 0.2, 0.6 and 0.7; the cut-off and the unchecked one are left out.
    assert figures.accuracy_correct == pytest.approx(2 / 3)
    assert figures.accuracy_wrong == pytest.approx(1 / 3)
    assert figures.self_verification_f1 == pytest.approx(4 / 9)
    # Of nine pairs the correct one is higher in 3 (0.9), 3 (0.8) and 1 (0.4).
    assert figures.auroc == pytest.approx(7 / 9)
    # Within problem a: 2 of 2; within b: 0.8 above 0.7, 0.4 not.
    assert figures.auroc_within_problem == pytest.approx(3 / 4)
    assert figures.mixed_problems == 2
    # Easy problems are right in 1 of 3 scored samples, hard ones in 2 of 3: correct (1/3, 2/3, 2/3) against wrong (1/3, 1/3, 2/3).
    assert figures.auroc_problem_only == pytest.approx((0.5 + 0.5 + 0 + 1 + 1 + 0.5 + 1 + 1 + 0.5) / 9)
    # Six bins of one sample each: |0.9 - 1|, |0.2 - 0|, |0.6 - 0|, |0.8 - 1|, |0.4 - 1|, |0.7 - 0|.
    assert figures.ece == pytest.approx((0.1 + 0.2 + 0.6 + 0.2 + 0.6 + 0.7) / 6, abs=1e-6)


def test_votes_by_hand(batch):
    figures = summarise(batch, SCORES)
    # a: two votes for "2" beat one for "1". b: "1" and "1.0" are one answer, and beat "3".
    assert figures.maj_at_k == 1 / 2
    # a: 0.9 for "1" beats 0.2 + 0.6 for "2".
    assert figures.weighted_at_k == 1.0


def test_unchecked_samples_do_not_vote():
    """Nothing says whether their answer is right, so that a vote they win could not be judged."""
    problem = group("a", [(ERROR, "7", True, 1), (TIMEOUT, "7", True, 1), (CORRECT, "1", True, 1)])
    assert summarise(to_batch([problem]), np.array([1, 1, 0.1], np.float32)).weighted_at_k == 1
    assert summarise(to_batch([problem]), None).maj_at_k == 1
    unchecked = group("b", [(ERROR, "7", True, 1)])
    assert (
        summarise(to_batch([problem, unchecked]), None).maj_at_k == 1
    )  # of the one problem that could be checked


def test_an_empty_box_is_not_pooled_with_right_answers():
    batch = to_batch(
        [group("a", [(NO_ANSWER, "", True, 1), (CORRECT, "1", True, 1), (CORRECT, "1.0", True, 1)])]
    )
    assert summarise(batch, None).maj_at_k == 1


def test_a_truncated_solution_votes_plainly_but_has_no_weight():
    cut = to_batch([group("a", [(CORRECT, "1", False, 1), (CORRECT, "1", False, 1), (WRONG, "2", True, 1)])])
    figures = summarise(cut, np.array([NAN, NAN, 0.1], np.float32))
    assert figures.maj_at_k == 1
    assert figures.weighted_at_k == 0


def test_answers_of_unlike_problems_are_not_pooled():
    batch = to_batch(
        [
            group("a", [(CORRECT, "1", True, 1), (WRONG, "2", True, 1)]),
            group("b", [(WRONG, "1", True, 1), (CORRECT, "2", True, 1)]),
        ]
    )
    assert summarise(batch, None).maj_at_k == 1 / 2  # a tie goes to the first sample


def test_scores_outside_zero_to_one_are_clipped_for_the_vote_only():
    batch = to_batch([group("a", [(CORRECT, "1", True, 1), (WRONG, "2", True, 1), (WRONG, "2", True, 1)])])
    figures = summarise(batch, np.array([3.0, 0.6, 0.6], np.float32))
    assert figures.weighted_at_k == 0  # 1 against 1.2
    assert figures.auroc == 1
    assert (
        summarise(batch, np.array([0.1, -5.0, 0.05], np.float32)).weighted_at_k == 1
    )  # a negative score takes no vote away


def test_without_self_reward_there_are_no_figures_of_it(batch):
    figures = summarise(batch, None).metrics()
    assert figures["accuracy"] == pytest.approx(3 / 7)
    assert figures["maj_at_k"] == 1 / 2
    undefined = {name for name, value in figures.items() if math.isnan(value)}
    assert undefined == {
        "self_verification_f1", "accuracy_correct", "accuracy_wrong", "auroc", "auroc_within_problem", "auroc_problem_only", "ece",
        "weighted_at_k",
    }  # fmt: skip


def test_figures_that_the_samples_do_not_define_are_nan_and_not_printed():
    """All cut off: nothing to score; all unchecked: no accuracy either."""
    cut = to_batch([group("a", [(NO_ANSWER, None, False, 5), (NO_ANSWER, None, False, 5)])])
    figures = summarise(cut, np.array([NAN, NAN], np.float32))
    assert (figures.accuracy, figures.finished_share) == (0, 0)
    assert math.isnan(figures.self_verification_f1)
    assert describe("step 0", figures) == "step 0: accuracy 0.000  Maj@k 0.000"
    unchecked = summarise(to_batch([group("a", [(TIMEOUT, None, True, 5)])]), np.array([0.5], np.float32))
    assert math.isnan(unchecked.accuracy)
    assert math.isnan(unchecked.auroc)


@pytest.mark.parametrize("correct", [True, False])
def test_scores_of_one_class_can_be_drawn(correct):
    figure = score_figure(np.array([0.2, 3.0], np.float32), np.array([correct, correct]), "test")
    drawn = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert drawn == 2  # the score of 3 lies within the axis
