import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.algorithm.metrics import (
    auroc,
    auroc_problem_only,
    auroc_within_problem,
    bootstrap_interval,
    bootstrap_means,
    expected_calibration_error,
    paired_difference,
    self_verification,
)

scored_samples = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.9]), st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=30,
)


def columns(samples):
    return (np.array(column) for column in zip(*samples, strict=True))


def test_self_verification_by_hand():
    scores = np.array([0.9, 0.5, 0.6, 0.51, 0.5, 0.1, math.nan])
    correct = np.array([1, 1, 1, 0, 0, 0, 1], dtype=bool)
    finished = np.array([1, 1, 1, 1, 1, 1, 0], dtype=bool)
    result = self_verification(scores, correct, finished)
    # 0.5 itself is a verdict of wrong: 2 of 3 correct ones and 2 of 3 wrong ones are told.
    assert (result.accuracy_correct, result.accuracy_wrong) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert result.f1 == pytest.approx(2 / 3)
    assert result.unfinished == 1


def test_f1_is_the_harmonic_mean():
    result = self_verification(
        np.array([0.9, 0.9, 0.9, 0.1]), np.array([True, True, False, False]), np.ones(4, dtype=bool)
    )
    assert (result.accuracy_correct, result.accuracy_wrong) == (1.0, 0.5)
    assert result.f1 == pytest.approx(2 / 3)


def test_always_the_wrong_verdict_has_an_f1_of_zero():
    assert self_verification(np.array([0.1, 0.9]), np.array([True, False]), np.ones(2, dtype=bool)).f1 == 0


def test_one_class_has_no_f1():
    result = self_verification(np.array([0.9, 0.8]), np.array([True, True]), np.ones(2, dtype=bool))
    assert result.accuracy_correct == 1
    assert math.isnan(result.accuracy_wrong)
    assert math.isnan(result.f1)


def test_metrics_take_tensors():
    scores, correct = torch.tensor([0.9, 0.2, 0.6]), torch.tensor([True, False, False])
    assert self_verification(scores, correct, torch.tensor([True, True, True])).accuracy_wrong == 0.5
    assert auroc(scores, correct) == 1
    assert auroc_within_problem(scores, correct, torch.tensor([0, 0, 1])) == (1.0, 1)


def test_auroc_by_hand():
    # Pairs: 0.8 above 0.5 and 0.1; 0.5 ties with 0.5 and is above 0.1.
    assert auroc(np.array([0.8, 0.5, 0.5, 0.1]), np.array([True, True, False, False])) == 3.5 / 4


@given(scored_samples)
def test_auroc_is_the_share_of_concordant_pairs(samples):
    scores, correct, group = columns(samples)
    pairs = [(s, t, g == h) for s, c, g in samples for t, d, h in samples if c and not d]
    concordance = [(float(s > t) + float(s == t) / 2, same) for s, t, same in pairs]
    expected = np.mean([value for value, _ in concordance]) if pairs else math.nan
    assert auroc(scores, correct) == pytest.approx(expected, nan_ok=True)
    within = [value for value, same in concordance if same]
    mixed = sum(len(set(correct[group == problem])) == 2 for problem in set(group))
    assert auroc_within_problem(scores, correct, group) == (
        pytest.approx(np.mean(within) if within else math.nan, nan_ok=True),
        mixed,
    )


def test_a_score_that_knows_only_the_problem_earns_nothing_within_it():
    # An easy problem (3 of 4 right) scored 0.9 throughout, a hard one (1 of 4 right) scored 0.1.
    group = np.repeat([0, 1], 4)
    correct = np.array([1, 1, 1, 0, 1, 0, 0, 0], dtype=bool)
    scores = np.where(group == 0, 0.9, 0.1)
    assert auroc(scores, correct) == pytest.approx((9 + 3 / 2 + 3 / 2) / 16)
    assert auroc_within_problem(scores, correct, group) == (0.5, 2)
    assert auroc_problem_only(correct, group) == auroc(scores, correct)


def test_pairs_are_pooled_over_problems_and_not_averaged_by_problem():
    # Problem 0: 3 pairs, all concordant. Problem 1: 1 pair, discordant. Problem 2: one class, no pair.
    scores = np.array([0.9, 0.1, 0.2, 0.3, 0.2, 0.8, 0.5])
    correct = np.array([1, 0, 0, 0, 1, 0, 1], dtype=bool)
    assert auroc_within_problem(scores, correct, np.array([0, 0, 0, 0, 1, 1, 2])) == (0.75, 2)


def test_problem_only_takes_named_difficulties():
    assert auroc_problem_only(np.array([True, True, False]), np.array(["easy", "easy", "hard"])) == 1


def test_calibration_error_by_hand():
    # Bin [0.9, 1]: mean score 0.975, accuracy 1/2, two samples. Bin [0, 0.1): score 0 after clipping,
    # accuracy 0.
    scores = np.array([0.95, 1.7, -0.4, 0.0])
    correct = np.array([True, False, False, False])
    assert expected_calibration_error(scores, correct) == pytest.approx(0.475 * 2 / 4)


def test_gaps_of_opposite_sign_cancel_only_inside_a_bin():
    scores, correct = np.array([0.75, 0.25]), np.array([False, True])
    assert expected_calibration_error(scores, correct, bins=2) == pytest.approx(0.75)
    assert expected_calibration_error(scores, correct, bins=1) == 0


def test_no_samples_define_nothing():
    nothing, no_class = np.array([]), np.array([], dtype=bool)
    assert math.isnan(auroc(nothing, no_class))
    assert math.isnan(expected_calibration_error(nothing, no_class))
    assert math.isnan(auroc_problem_only(no_class, nothing))
    within, mixed = auroc_within_problem(nothing, no_class, nothing)
    assert math.isnan(within)
    assert mixed == 0


def test_nan_scores_are_refused():
    scores, correct = np.array([0.5, math.nan]), np.array([True, False])
    for metric in (auroc, expected_calibration_error):
        with pytest.raises(ValueError, match="1 of 2 scores are NaN: leave unfinished samples out"):
            metric(scores, correct)


def test_bootstrap_interval_by_hand():
    # The mean of n draws from {0, 1} is Binomial(n, share) / n. n = 3, share 2/3: P(0) = 1/27 is above 2.5 %,
    # P(1) = 8/27.
    assert bootstrap_interval(np.array([1.0, 1.0, 0.0])) == (0.0, 1.0)
    # One tail of 10 %: P(0) = .037 is below it, P(at most 1/3) = 7/27 above.
    assert bootstrap_interval(np.array([1.0, 1.0, 0.0]), level=0.8) == (pytest.approx(1 / 3), 1.0)
    assert bootstrap_interval(np.array([0.25, 0.25])) == (0.25, 0.25)


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values)
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert bootstrap_interval(values, draws=50, seed=1) == bootstrap_interval(values, draws=50, seed=1)
    assert bootstrap_interval(values, draws=50, seed=1) != bootstrap_interval(values, draws=50, seed=2)


def test_a_weighted_bootstrap_draws_problems_with_all_their_samples():
    # Problem a: 3 of 3 right; b: 0 of 1. Draws: aa 1, bb 0, and ab or ba 3/4.
    values, weights = np.array([1.0, 0.0]), np.array([3, 1])
    means = bootstrap_means(values, 4_000, np.random.default_rng(0), weights)
    assert set(means) == {0.0, 0.75, 1.0}
    assert np.mean(means == 0.75) == pytest.approx(0.5, abs=3.5 * 0.5 / math.sqrt(4_000))
    assert bootstrap_interval(values, level=0.6, weights=weights) == (0.0, 1.0)
    assert bootstrap_interval(values, level=0.4, weights=weights) == (0.75, 0.75)


def test_paired_difference_by_hand():
    # Differences 0.5, 0, 1: mean 0.5, unbiased std 0.5, over sqrt(3).
    assert paired_difference(np.array([1.0, 0.5, 1.0]), np.array([0.5, 0.5, 0.0])) == (
        0.5,
        pytest.approx(0.5 / math.sqrt(3)),
    )
    mean, error = paired_difference(np.array([1.0]), np.array([0.25]))
    assert mean == 0.75
    assert math.isnan(error)


def test_errors_over_problems_need_values():
    for values, message in (([], "0 of 0 problems"), ([0.5, math.nan], "1 of 2 problems have no value")):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(np.array(values))
        with pytest.raises(ValueError, match=message):
            paired_difference(np.array(values), np.array(values))
    with pytest.raises(ValueError, match="a has 2 problems and b 1"):
        paired_difference(np.array([0.0, 1.0]), np.array([0.0]))
    with pytest.raises(ValueError, match=r"level is 95; it must be between 0 and 1"):
        bootstrap_interval(np.array([0.5]), level=95)
