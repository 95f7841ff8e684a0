"""The figures of an evaluation against values worked out by hand."""

import json
import math
from dataclasses import replace

import pytest

from orchestrator.evaluation.figures import EvalResults, average, columns_of, set_results
from tests.evaluation.made import NAN, sample, samples_of_two_problems


def test_figures_by_hand():
    found = set_results("s", columns_of(samples_of_two_problems()))
    figures = found.figures
    # Over samples; the timed-out one is neither right nor wrong.
    assert figures.accuracy == pytest.approx(2 / 7)
    assert (figures.accuracy_low, figures.accuracy_high) == (pytest.approx(1 / 4), pytest.approx(1 / 3))
    assert figures.finished_share == 7 / 8
    assert (found.unfinished, found.unverified, found.mixed_problems) == (1, 1, 2)
    assert figures.accuracy_correct == 1 / 2  # .9, .4
    assert figures.accuracy_wrong == 3 / 4  # .6, .2, .3, .3
    assert figures.self_verification_f1 == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    assert figures.accuracy_wrong_answered == pytest.approx(2 / 3)  # without the .3 that has no answer
    assert figures.f1_answered == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert figures.auroc == pytest.approx(7 / 8)  # of 8 pairs only .4 < .6 is the wrong way round
    assert figures.auroc_within_problem == 1.0
    # Bins .9: gap .1; .6: .6; .4: .6; .3 twice: .6; .2: .2, over 6 samples.
    assert figures.ece == pytest.approx((0.1 + 0.6 + 0.6 + 0.6 + 0.2) / 6)
    assert figures.response_tokens == 17.5


def test_votes_by_hand():
    found = set_results("s", columns_of(samples_of_two_problems()))
    assert [row.k for row in found.at_k] == [1, 2, 4]
    first, _, last = found.at_k
    assert first.pass_at_k == first.maj_at_k == 1 / 4
    # p: 5 has two votes of three; q: 4 and 7 tie, a fair half.
    assert last.maj_at_k == pytest.approx((0 + 1 / 2) / 2)
    # p: .9 against .8; q: .4 against .3.
    assert last.weighted_at_k == 1.0
    # p: .9 is right; q: the timed-out .8 is not.
    assert last.best_of_k == 0.5
    assert last.pass_at_k == 1.0
    assert found.metrics()["weighted_at_k"] == 1.0
    assert found.metrics()["maj_at_2"] == found.at_k[1].maj_at_k
    assert found.metrics()["maj_at_k"] == last.maj_at_k
    by_rule = {(point.rule, point.parameter): point for point in found.cost}
    assert by_rule["weighted", 4].accuracy == 1.0
    assert by_rule["weighted", 4].tokens == (100 + 40) / 2
    assert by_rule["adaptive", 0.6].samples < 4


def test_a_vote_over_all_samples_whatever_their_number():
    """Of 3 samples the two wrong ones win; over any 2 of them they would not always."""
    samples = [sample(0), sample(1, "wrong", "5", 1, 0.1), sample(2, "wrong", "5", 1, 0.1)]
    found = set_results("s", columns_of(samples))
    assert [row.k for row in found.at_k] == [1, 2, 3]
    assert found.figures.maj_at_k == 0
    assert found.figures.weighted_at_k == 1
    plain = set_results("s", columns_of(samples), tables=False)
    assert plain.figures == found.figures
    assert ([row.k for row in plain.at_k], plain.cost) == ([3], [])


def test_a_problem_that_nobody_could_check_is_left_out():
    checked = [sample(0), sample(1, "wrong", "5", 1, 0.1)]
    unchecked = [sample(number, "error", "5", None, 0.9, problem="q") for number in range(2)]
    found, alone = (set_results("s", columns_of(samples)) for samples in (checked + unchecked, checked))
    assert (found.problems, found.unverified) == (2, 2)
    assert found.at_k == alone.at_k
    assert found.figures.accuracy == alone.figures.accuracy == 1 / 2
    nothing = set_results("s", columns_of(unchecked))
    assert (nothing.at_k, nothing.cost) == ([], [])
    assert all(math.isnan(nothing.metrics()[name]) for name in ("accuracy", "maj_at_k", "weighted_at_k"))


def test_the_interval_weighs_problems_by_their_checked_samples():
    """a: 3 of 3; b: 0 of 1. Of the four draws of two problems one is right in 1, two in 3/4 and one in 0 of
    the samples."""
    samples = [*(sample(number, problem="a") for number in range(3)), sample(0, "wrong", "5", 1, problem="b")]
    figures = set_results("s", columns_of(samples)).figures
    assert figures.accuracy == 3 / 4
    assert (figures.accuracy_low, figures.accuracy_high) == (0, 1)


def test_without_a_score_there_are_accuracy_and_plain_votes():
    found = set_results("s", columns_of([replace(one, score=NAN) for one in samples_of_two_problems()]))
    assert found.figures.accuracy == pytest.approx(2 / 7)
    assert math.isnan(found.figures.self_verification_f1)
    assert math.isnan(found.at_k[-1].weighted_at_k)
    assert math.isnan(found.at_k[-1].best_of_k)
    assert {point.rule for point in found.cost} == {"majority", "adaptive majority"}


def test_the_average_weighs_sets_alike_and_a_figure_that_one_lacks_is_not_defined(tmp_path):
    one = set_results("one", columns_of(samples_of_two_problems()))
    other = set_results("other", columns_of([sample(0, problem=name) for name in "abc"]))
    mean = average([one, other])
    assert mean.accuracy == pytest.approx((2 / 7 + 1) / 2)
    assert (mean.accuracy_low, mean.accuracy_high) == (
        pytest.approx((1 / 4 + 1) / 2),
        pytest.approx((1 / 3 + 1) / 2),
    )
    assert math.isnan(other.figures.auroc)
    assert math.isnan(mean.auroc)
    results = EvalResults(tmp_path, "mine", None, [one, other], mean, undecided=1)
    tree = json.loads(json.dumps(results.tree(), allow_nan=False))
    assert tree["average"]["auroc"] is None
    assert tree["sets"][0]["figures"]["auroc"] == 7 / 8


def test_graded_rewards_have_a_mean_and_a_verifier_that_compares_no_answers_has_no_votes():
    rewards = [1.0, 0.25, 0.25, 0.0, 0.75, 0.0, 0.0, None]
    samples = [
        replace(one, reward=reward) for one, reward in zip(samples_of_two_problems(), rewards, strict=True)
    ]
    found = set_results("s", columns_of(samples, votes=False))
    assert found.figures.reward == pytest.approx(2.25 / 7), "the sample that timed out has none"
    assert found.figures.accuracy == pytest.approx(2 / 7)
    assert math.isnan(found.figures.maj_at_k)
    assert math.isnan(found.figures.weighted_at_k)
    assert all(math.isnan(row.maj_at_k) and not math.isnan(row.pass_at_k) for row in found.at_k)
    assert found.cost == []
    earlier = set_results("s", columns_of(samples_of_two_problems()))
    assert earlier.figures.reward == earlier.figures.accuracy, "files without rewards"
