import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.algorithm.adaptive import (
    CONFIDENCES,
    AdaptiveVote,
    StopRule,
    accuracy_against_tokens,
    settled,
)
from orchestrator.algorithm.metrics import paired_difference
from orchestrator.algorithm.voting import ProblemSamples, maj_at_k, weighted_maj_at_k

NAN = math.nan


def simulated(rng, count, n=16):
    """Problems of mixed difficulty: class 0 is right, wrong answers are spread, scores overlap, wrong samples
    are longer."""
    problems = []
    for share in rng.beta(1, 1, count):
        right = rng.random(n) < share
        answers = np.where(right, 0, rng.integers(1, 6, n))
        scores = np.where(right, rng.beta(3, 2, n), rng.beta(2, 3, n))
        problems.append(ProblemSamples(answers, right, scores, np.where(right, 20, 30)))
    return problems


def test_beta_criterion_by_hand():
    """Beta(a, 1) has P(p > 1/2) = 1 - 2^-a; Beta(3, 2) has 11/16."""
    for votes, confidence in (
        ([1], 3 / 4),
        ([3], 15 / 16),
        ([0, 0.5, 0], 1 - 2**-1.5),
        ([1, 2], 11 / 16),
        ([2, 0, 1], 11 / 16),
    ):
        assert settled(votes, 3, StopRule(confidence - 1e-6, 1, 50))
        assert not settled(votes, 3, StopRule(confidence + 1e-6, 1, 50))


def test_no_answers_and_ties_settle_nothing():
    rule = StopRule(0.5001, 1, 100)
    assert not settled([], 20, rule)
    assert not settled([0.0, 0.0], 20, rule)
    assert not settled([4, 4, 1], 20, rule)


def test_bounds_on_samples():
    rule = StopRule(0.75, 3, 5)
    assert not settled([2], 2, rule)
    assert settled([2], 3, rule)
    assert not settled([1, 1], 4, rule)
    assert settled([1, 1], 5, rule)
    assert settled([], 5, rule)


def test_a_vote_that_the_rest_cannot_change_is_settled():
    """Of 8 samples 3 remain: 4 votes to 0 are decided, 4 to 1 might still tie."""
    never = StopRule(1.0, 1, 8)
    assert settled([4], 5, never)
    assert not settled([4, 1], 5, never)
    assert settled([4, 1], 6, never)


@pytest.mark.parametrize("bounds", [(0.5, 1, 8), (1.1, 1, 8), (NAN, 1, 8), (0.9, 0, 8), (0.9, 9, 8)])
def test_rules_that_mean_nothing_are_refused(bounds):
    with pytest.raises(ValueError, match=r"confidence is|min_samples is"):
        StopRule(*bounds)


def test_adaptive_vote_by_hand():
    vote = AdaptiveVote(StopRule(0.78, 1, 8))
    assert (vote.winner, vote.settled) == (None, False)
    vote.add(4, 0.5, 20)
    vote.add(-1, NAN, 64)  # no answer
    vote.add(2, NAN, 64)  # an answer, but unfinished: no weight
    vote.add(4, -0.3, 20)  # clipped to 0
    assert vote.votes == {4: 0.5, 2: 0.0}
    assert (vote.winner, vote.samples, vote.tokens) == (4, 4, 168)
    assert not vote.settled  # 1 - 2^-1.5 = 0.65
    vote.add(2, 1.7, 20)  # clipped to 1
    assert vote.winner == 2
    vote.add(2, 1.0, 20)
    # Beta(3, 1.5), by quadrature: 0.784.
    grid = np.linspace(0, 1, 200_001)
    density = grid**2 * np.sqrt(1 - grid)
    assert density[grid > 0.5].sum() / density.sum() == pytest.approx(0.784, abs=1e-3)
    assert vote.settled
    assert not settled(list(vote.votes.values()), vote.samples, StopRule(0.79, 1, 8))


def test_a_plain_rule_counts_samples():
    vote = AdaptiveVote(StopRule(0.9, 1, 8, weighted=False))
    for expected in (False, False, True):  # 3/4, 7/8, 15/16
        vote.add(1, NAN, 10)
        assert vote.settled is expected
    assert vote.votes == {1: 3.0}


def test_replay_by_hand():
    """Right (score 1, 10 tokens) and wrong (score 0.2, 30 tokens); the rule stops on a first vote of 1."""
    samples = ProblemSamples(
        np.array([0, 1]), np.array([True, False]), np.array([1.0, 0.2]), np.array([10, 30])
    )
    points = accuracy_against_tokens(
        [samples], [StopRule(0.75, 1, 2), StopRule(0.75, 1, 2, weighted=False)], draws=4_000
    )
    by_rule = {(point.rule, point.parameter): point for point in points}
    assert list(by_rule) == [
        ("majority", 1), ("majority", 2), ("weighted", 1), ("weighted", 2),
        ("adaptive", 0.75), ("adaptive majority", 0.75),
    ]  # fmt: skip
    near = {"abs": 0.5 * 3.5 / math.sqrt(4_000)}  # of a share of orders; tokens and samples scale it
    one, both, adaptive, plain = (
        by_rule[key]
        for key in [("majority", 1), ("majority", 2), ("adaptive", 0.75), ("adaptive majority", 0.75)]
    )
    assert one.accuracy == pytest.approx(0.5, **near)
    assert (one.samples, both.samples, both.tokens, both.accuracy) == (1, 2, 40, 0.5)
    assert by_rule["weighted", 2].accuracy == 1
    # Right first: stops there with 10 tokens. Wrong first, P = 1 - 2^-1.2 = .56: draws the other as well,
    # which wins.
    assert adaptive.accuracy == 1
    assert adaptive.samples == pytest.approx(1.5, **near)
    assert adaptive.tokens == pytest.approx(25 + 30 * (adaptive.samples - 1.5))
    # One whole vote is 3/4: the plain rule always stops at the first sample.
    assert (plain.accuracy, plain.tokens) == (one.accuracy, one.tokens)
    assert math.isnan(adaptive.standard_error)


@settings(deadline=None)  # a busy machine fails no arithmetic
@given(
    st.integers(-1, 2),
    st.sampled_from([NAN, -0.5, 0.2, 0.6, 1.5]),
    st.sampled_from([0.55, 0.7, 0.8, 0.95]),
    st.integers(1, 6),
    st.booleans(),
)
def test_a_replay_stops_where_the_service_would(answer, score, confidence, fewest, weighted):
    """Samples that are all alike have one order: both must take as many of them."""
    answers, scores, tokens = np.full(6, answer), np.full(6, score), np.full(6, 7)
    rule = StopRule(confidence, fewest, 6, weighted)
    vote = AdaptiveVote(rule)
    while not vote.settled:
        vote.add(answer, score, 7)
    point = accuracy_against_tokens([ProblemSamples(answers, answers == 0, scores, tokens)], [rule], draws=2)[
        -1
    ]
    assert (point.samples, point.tokens, point.accuracy) == (
        vote.samples,
        vote.tokens,
        float(vote.winner == 0),
    )


def test_a_replay_equals_the_service_over_all_orders():
    """Accuracy, tokens and samples of the incremental vote, averaged over the 720 orders of six unlike
    samples."""
    answers, scores = np.array([0, 1, 0, 2, -1, 1]), np.array([0.9, 0.4, 0.3, 0.75, NAN, 0.15])
    tokens = np.array([10, 20, 30, 40, 50, 60])
    rule = StopRule(0.7, 1, 6)
    outcomes = []
    for order in permutations(range(6)):
        vote = AdaptiveVote(rule)
        for sample in order:
            if not vote.settled:
                vote.add(int(answers[sample]), float(scores[sample]), int(tokens[sample]))
        outcomes.append((vote.winner == 0, vote.tokens, vote.samples))
    means, errors = np.mean(outcomes, axis=0), np.std(outcomes, axis=0) / math.sqrt(5_000)
    point = accuracy_against_tokens(
        [ProblemSamples(answers, answers == 0, scores, tokens)], [rule], draws=5_000
    )[-1]
    for value, mean, error in zip((point.accuracy, point.tokens, point.samples), means, errors, strict=True):
        assert abs(value - mean) < 4 * error


def test_fixed_rules_agree_with_the_expectation_over_subsets():
    problems = simulated(np.random.default_rng(2), 40, n=8)
    points = {
        (point.rule, point.parameter): point for point in accuracy_against_tokens(problems, [], draws=400)
    }
    for k in (1, 2, 4, 8):
        assert points["majority", k].accuracy == pytest.approx(maj_at_k(problems, k).value, abs=0.015)
        assert points["weighted", k].accuracy == pytest.approx(
            weighted_maj_at_k(problems, k).value, abs=0.015
        )


def test_the_weighted_rule_reaches_the_plain_votes_accuracy_with_fewer_tokens():
    problems = simulated(np.random.default_rng(3), 400)
    points = {(point.rule, point.parameter): point for point in accuracy_against_tokens(problems, draws=20)}
    adaptive, plain = points["adaptive", 0.7], points["majority", 8]
    better, error = paired_difference(adaptive.accuracy_by_problem, plain.accuracy_by_problem)
    assert better > 2 * error
    saved, error = paired_difference(plain.tokens_by_problem, adaptive.tokens_by_problem)
    assert saved > 2 * error
    # More confidence costs more, and in the end as much accuracy as the whole budget.
    tokens = [points["adaptive", confidence].tokens for confidence in CONFIDENCES]
    assert tokens == sorted(tokens)
    assert points["adaptive", 0.99].accuracy == pytest.approx(points["weighted", 16].accuracy, abs=0.005)
    assert points["adaptive", 0.99].tokens < 0.9 * points["weighted", 16].tokens


def test_errors_are_over_problems():
    right = ProblemSamples(np.array([0, 0]), np.array([True, True]), None, np.array([5, 5]))
    wrong = ProblemSamples(np.array([0, 0]), np.array([False, False]), None, np.array([7, 7]))
    points = accuracy_against_tokens([right, wrong], draws=3)
    # Without scores: plain votes only. Unbiased std of (1, 0) is sqrt(1/2), over sqrt(2) problems.
    assert {point.rule for point in points} == {"majority", "adaptive majority"}
    assert points[1].standard_error == pytest.approx(0.5)
    assert points[1].accuracy_by_problem.tolist() == [1, 0]
    assert points[1].tokens_by_problem.tolist() == [10, 14]


def test_replays_repeat_with_their_seed():
    problems = simulated(np.random.default_rng(4), 5)
    assert accuracy_against_tokens(problems, seed=1, draws=5) == accuracy_against_tokens(
        problems, seed=1, draws=5
    )
    assert accuracy_against_tokens(problems, seed=1, draws=5) != accuracy_against_tokens(
        problems, seed=2, draws=5
    )


def test_what_a_replay_needs():
    answers, correct, scores, tokens = (
        np.array([0, 1]),
        np.array([True, False]),
        np.array([1.0, 0.0]),
        np.array([5, 5]),
    )
    plain, scored = (
        ProblemSamples(answers, correct, None, tokens),
        ProblemSamples(answers, correct, scores, tokens),
    )
    with pytest.raises(ValueError, match="needs problems with the tokens"):
        accuracy_against_tokens([ProblemSamples(answers, correct, scores)])
    with pytest.raises(ValueError, match="there are 0 problems"):
        accuracy_against_tokens([])
    with pytest.raises(ValueError, match="some problems have scores and others none"):
        accuracy_against_tokens([plain, scored])
    with pytest.raises(ValueError, match="scores where weighted"):
        accuracy_against_tokens([plain], [StopRule(0.9, 1, 2)])
    with pytest.raises(ValueError, match="needs 3 samples a problem"):
        accuracy_against_tokens([scored], [StopRule(0.9, 1, 3)])
