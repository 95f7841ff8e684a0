"""The report's numbers against values worked out by hand."""

import math

import numpy as np
import pytest

from dashboards.report.figures import (
    band,
    cell,
    choose_samples,
    differing_settings,
    histograms,
    is_continuous,
    off_by,
    ranking,
    reliability,
    seed_groups,
    thinned,
)
from dashboards.report.load import load_runs
from tests.dashboards.folders import evaluation_values, scores_of, write_config, write_journal


def test_a_band_is_over_the_seeds_that_got_there():
    found = band([{1: 0.2, 2: 0.4, 3: 0.9}, {1: 0.4, 2: 0.8}, {2: 0.6}])
    assert found.steps == [1, 2, 3]
    assert found.mean == pytest.approx([0.3, 0.6, 0.9])
    assert found.low == [0.2, 0.4, 0.9]
    assert found.high == [0.4, 0.8, 0.9]


def test_long_curves_are_thinned_to_means_or_maxima_over_the_same_windows():
    curves = [{1: 1.0, 2: 3.0, 3: 2.0, 4: 8.0}, {1: 4.0, 2: 5.0, 3: 6.0}]
    assert thinned(curves, largest=False, limit=2) == [{2: 2.0, 4: 5.0}, {2: 4.5, 4: 6.0}]
    assert thinned(curves, largest=True, limit=2) == [{2: 3.0, 4: 8.0}, {2: 5.0, 4: 6.0}]
    assert thinned(curves, largest=False, limit=4) == curves


def test_reliability_bins_by_hand():
    # Two in [0, 0.1), of mean 0.05 and none right; two in [0.5, 0.6), of mean 0.55 and one right.
    # -3 and 4 are clipped into the outermost bins.
    score = np.array([0.02, 0.08, 0.52, 0.58, -3.0, 4.0])
    bins = reliability(score, np.array([False, False, True, False, True, True]))
    assert [each.count for each in bins] == [3, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    assert (bins[0].score, bins[0].correct) == pytest.approx((0.1 / 3, 1 / 3))
    assert (bins[5].low, bins[5].score, bins[5].correct) == pytest.approx((0.5, 0.55, 0.5))
    assert math.isnan(bins[1].score)


def test_histograms_count_each_class_and_what_lies_beyond():
    edges, right, wrong = histograms(
        scores_of(("correct", 0.51), ("correct", 9.0), ("wrong", -9.0), ("timeout", 0.5), ("wrong", None))
    )
    assert (edges[0], edges[-1], len(right)) == (-0.5, 1.5, 40)
    assert [number for number, count in enumerate(right) if count] == [20, 39]  # [0.5, 0.55) and the last
    assert [number for number, count in enumerate(wrong) if count] == [0]


def test_the_most_confident_mistakes_come_first_and_those_without_a_score_last():
    scores = scores_of(
        ("timeout", 0.99),  # 0: not verified
        ("correct", 0.9),  # 1: off by 0.1
        ("wrong", 1.2),  # 2: off by 1 when clipped
        ("correct", -0.1),  # 3: off by 1 when clipped, and nearer to 0 than 2 is to 1
        ("wrong", None),  # 4: unfinished
        ("wrong", 0.7),  # 5: off by 0.7
        ("no_answer", 0.75),  # 6: a wrong one too
    )
    assert off_by(scores).tolist() == pytest.approx(
        [math.nan, 0.1, 1.0, 1.0, math.nan, 0.7, 0.75], nan_ok=True
    )
    assert choose_samples(scores).tolist() == [2, 3, 6, 5, 1, 0, 4]


def test_of_many_samples_the_worst_of_both_kinds_and_a_spread_of_the_rest_are_chosen():
    wrong = [("wrong", number / 100) for number in range(100)]
    right = [("correct", number / 100) for number in range(100)]
    unfinished = [("no_answer", None)] * 100
    scores = scores_of(*wrong, *right, *unfinished)
    rows = choose_samples(scores, limit=30).tolist()
    assert len(rows) == len(set(rows)) == 30
    assert set(range(90, 100)) <= set(rows)  # a third: wrong ones scored highest
    assert set(range(100, 110)) <= set(rows)  # a third: right ones scored lowest
    assert [row for row in rows if row >= 200] == rows[-3:] == [200, 250, 299]  # a tenth, spread
    gaps = off_by(scores)[rows[:-3]]
    assert (np.diff(gaps) <= 0).all()
    assert gaps.min() < 0.1  # the rest reaches down to the well scored


def test_without_scores_the_samples_are_spread_over_the_set():
    assert choose_samples(scores_of(*[("wrong", None)] * 11), limit=3).tolist() == [0, 5, 10]


def test_a_surface_cell_is_the_mean_of_finished_trials(sweep_folder):
    finished, other = load_runs([sweep_folder]).runs[2:4]
    values = {id(finished): 0.5, id(other): 0.7}
    both = cell([finished, other], lambda run: values[id(run)])
    assert (both.mean, both.deviation, both.count) == pytest.approx((0.6, math.sqrt(0.02), 2))
    failed = next(run for run in load_runs([sweep_folder]).runs if run.status == "failed")
    partly = cell([finished, failed], lambda run: 0.5)
    assert (partly.mean, partly.count, partly.runs) == (0.5, 1, 2)
    assert math.isnan(partly.deviation)
    assert cell([failed], lambda run: 0.5).state == "failed"
    assert (cell([], lambda run: 0.5).count, cell([], lambda run: 0.5).state) == (0, "")


def test_values_from_ranges_are_told_from_lists_of_values():
    grid = [{"a": a, "b": b} for a in (0.1, 0.2, 0.5, 1.0, 2.0) for b in (0.1, 0.2, 0.5, 1.0, 2.0)]
    drawn = [{"a": number / 7, "b": number / 11} for number in range(1, 9)]
    assert not is_continuous(grid, ["a", "b"])
    assert is_continuous(drawn, ["a", "b"])
    assert not is_continuous(drawn, ["a"])
    assert not is_continuous([{"a": "x", "b": number / 3} for number in range(20)], ["a", "b"])


def test_seeds_of_one_setting_are_one_point_and_only_what_differs_is_a_column(tmp_path):
    for name, seed, alpha in (("a", 0, 0.5), ("b", 1, 0.5), ("c", 0, 0.1)):
        write_journal(tmp_path / name, name, {1: {"train/accuracy": 0.1}}, {1: evaluation_values(alpha, 0.5)})
        write_config(tmp_path / name, run__seed=seed, loss__alpha=alpha, loss__tau=0.1)
    found = load_runs([tmp_path / name for name in "abc"])
    groups = [(group.label, len(group.runs)) for group in seed_groups(found)]
    assert groups == [("a and 1 more seed", 2), ("c", 1)]
    assert differing_settings(found) == ["loss.alpha", "run.seed"]


def test_runs_are_compared_by_accuracy_and_f1_unless_one_has_no_f1(tmp_path):
    write_journal(tmp_path / "laser", "laser", {}, {1: evaluation_values(0.5, 0.9)})
    write_journal(tmp_path / "grpo", "grpo", {}, {1: {"accuracy": 0.6}})
    write_journal(tmp_path / "none", "none", {1: {"train/accuracy": 0.6}})
    alone = ranking(load_runs([tmp_path / "laser", tmp_path / "none"]))
    assert (alone.metric, alone.values) == ("(accuracy + self_verification_f1) / 2", {0: pytest.approx(0.7)})
    both = ranking(load_runs([tmp_path / "laser", tmp_path / "grpo"]))
    assert (both.metric, both.values, both.best) == ("accuracy", {0: 0.5, 1: 0.6}, {1})


def test_figures_of_different_sets_are_not_ranked(tmp_path):
    write_journal(tmp_path / "a", "a", {}, {1: {"accuracy": 0.5}}, set_name="easy")
    write_journal(tmp_path / "b", "b", {}, {1: {"accuracy": 0.6}}, set_name="hard")
    assert ranking(load_runs([tmp_path / "a", tmp_path / "b"])).best == set()
