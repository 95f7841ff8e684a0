import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.algorithm import voting
from orchestrator.algorithm.voting import (
    ProblemSamples,
    answer_classes,
    best_of_k,
    maj_at_k,
    majority_vote,
    pass_at_k,
    pooled_votes,
    powers_of_two,
    weighted_maj_at_k,
)

NAN = math.nan


def problem(answers, correct, scores=None):
    return ProblemSamples(
        np.array(answers), np.array(correct, bool), None if scores is None else np.array(scores, np.float32)
    )


def random_problem(rng, n):
    answers = rng.integers(-1, 4, n)
    scores = np.where(rng.random(n) < 0.2, NAN, rng.normal(0.5, 0.5, n))
    return problem(answers, answers == 0, scores)


@st.composite
def problems(draw):
    """A problem of up to 6 samples, with verdicts that may disagree within a class, and a k that it
    allows."""
    samples = draw(
        st.lists(
            st.tuples(
                st.integers(-1, 2), st.booleans(), st.sampled_from([NAN, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0])
            ),
            min_size=1,
            max_size=6,
        )
    )
    return problem(*zip(*samples, strict=True)), draw(st.integers(1, len(samples)))


def brute_vote(samples, k, weights):
    """Counted one by one, without the code under test."""
    total = 0.0
    for subset in combinations(range(len(samples)), k):
        votes = {}
        for sample in subset:
            if samples.answers[sample] >= 0:
                votes[samples.answers[sample]] = votes.get(samples.answers[sample], 0.0) + weights[sample]
        tied = [answer for answer, vote in votes.items() if vote == max(votes.values())]
        total += (
            sum(samples.correct[samples.answers == answer].mean() for answer in tied) / len(tied)
            if tied
            else 0.0
        )
    return total / math.comb(len(samples), k)


def test_majority_by_hand():
    assert majority_vote([3, 5, 5, 3, 5]) == 5
    assert majority_vote([4, -1, -1]) == 4


def test_reference_fault_8_weighted_vote_takes_the_largest_sum_of_scores():
    # Sums: answer 3 has 0.9, answer 5 has 0.1 + 0.2 + 0.3.
    assert majority_vote([5, 3, 5, 5], [0.1, 0.9, 0.2, 0.3]) == 3


def test_no_answer_casts_no_vote():
    assert majority_vote([-1, -1, 4], [NAN, 1.0, 0.0]) == 4
    assert majority_vote([-1, -1]) is None
    assert majority_vote([]) is None


def test_tie_goes_to_the_answer_seen_first():
    assert majority_vote([7, 9, 9, 7]) == 7
    assert majority_vote([7, 9], [0.0, 0.0]) == 7
    # Added one by one, 0.1 + 0.2 + 0.3 is more than 0.3 + 0.2 + 0.1.
    assert majority_vote([7, 7, 7, 9, 9, 9], [0.3, 0.2, 0.1, 0.1, 0.2, 0.3]) == 7


def test_pooled_votes_by_hand():
    assert pooled_votes([2, -1, 0, 2], [0.5, 0.9, 0.25, 0.25]) == {2: 0.75, 0: 0.25}


@pytest.mark.parametrize("weight", [-0.1, NAN])
def test_weights_that_were_not_clipped_are_refused(weight):
    with pytest.raises(ValueError, match="the weight of sample 1 is"):
        majority_vote([3, 5], [0.5, weight])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="shorter"):
        majority_vote([3, 5], [0.5])
    with pytest.raises(ValueError, match=r"one length above 0, not \{'answers': 2, 'correct': 1\}"):
        problem([0, 1], [True])
    with pytest.raises(ValueError, match="above 0"):
        problem([], [])
    with pytest.raises(ValueError, match="an answer's class is -2"):
        problem([-2], [True])


def test_powers_of_two():
    assert powers_of_two(1) == [1]
    assert powers_of_two(7) == [1, 2, 4]
    assert powers_of_two(8) == [1, 2, 4, 8]


def test_pass_at_k_by_hand():
    # One of four is correct: 1 - C(3, 2) / C(4, 2) = 1/2. Two of three: any two have one. None: never.
    one, two, none = (
        problem([0, 1, 2, 3], [1, 0, 0, 0]),
        problem([0, 0, 1], [1, 1, 0]),
        problem([1, 2], [0, 0]),
    )
    estimate = pass_at_k([one, two, none], 2)
    assert estimate.by_problem.tolist() == [0.5, 1.0, 0.0]
    assert (estimate.value, estimate.standard_error) == (0.5, 0.0)


def test_majority_at_k_by_hand():
    # Answers r r w x, r right. Pairs: rr 1; rw, rx (two each) tie, 1/2; wx 0: (1 + 4/2) / 6. Triples: rrw,
    # rrx 1; rwx (two) 1/3.
    samples = problem([0, 0, 1, 2], [1, 1, 0, 0])
    assert maj_at_k([samples], 1).value == pytest.approx(1 / 2)
    assert maj_at_k([samples], 2).value == pytest.approx(3 / 6)
    assert maj_at_k([samples], 3).value == pytest.approx((2 + 2 / 3) / 4)
    assert maj_at_k([samples], 4).value == 1
    assert maj_at_k([samples, problem([1] * 4, [0] * 4)], 4).by_problem.tolist() == [1, 0]


def test_weighted_majority_at_k_by_hand():
    # r 0.9, w 0.5, w 0.5. Pairs: rw (two) go to r, ww to w. All three: 1.0 for w beats 0.9.
    samples = problem([0, 1, 1], [1, 0, 0], [0.9, 0.5, 0.5])
    assert weighted_maj_at_k([samples], 2).value == pytest.approx(2 / 3)
    assert weighted_maj_at_k([samples], 3).value == 0
    assert maj_at_k([samples], 2).value == pytest.approx(1 / 3)  # rw ties


def test_scores_are_clipped_and_unfinished_samples_have_no_weight():
    # 1 (not 3) against 0.6 + 0.6; the last r is unfinished and has no weight.
    assert weighted_maj_at_k([problem([0, 1, 1, 0], [1, 0, 0, 1], [3.0, 0.6, 0.6, NAN])], 4).value == 0
    # Answers without any weight tie, also one that is negative: right in 1 of 3 answers.
    assert weighted_maj_at_k([problem([0, 1, 2], [1, 0, 0], [-5.0, 0.0, NAN])], 3).value == pytest.approx(
        1 / 3
    )


def test_a_subset_without_an_answer_counts_as_wrong():
    samples = problem([0, -1, -1], [1, 0, 0], [1.0, 1.0, NAN])
    for vote in (maj_at_k, weighted_maj_at_k):
        # The right sample is in two pairs of three, where it is the only answer.
        assert vote([samples], 2).value == pytest.approx(2 / 3)
        assert vote([problem([-1, -1], [0, 0], [1.0, 0.5])], 1).value == 0


def test_where_verdicts_of_one_answer_disagree_the_share_counts():
    assert maj_at_k([problem([0, 0, 0, 1], [1, 0, 0, 0])], 4).value == pytest.approx(1 / 3)
    assert maj_at_k([problem([0, 0, 0, 1], [1, 1, 1, 0])], 1).value == pytest.approx(3 / 4)


def test_best_of_k_by_hand():
    # By score: r .9, w .5, r .1, then one unfinished. Pairs: three hold the first (1), two more the second
    # (0), one is {r .1, cut} (1).
    samples = problem([0, 1, 0, 2], [1, 0, 1, 0], [0.9, 0.5, 0.1, NAN])
    assert best_of_k([samples], 2).value == pytest.approx((3 + 0 + 1) / 6)
    # Scores are not clipped: 1.4 is above 1.2. Equal scores share.
    assert best_of_k([problem([0, 1], [1, 0], [1.4, 1.2])], 2).value == 1
    assert best_of_k([problem([0, 1, 1], [1, 0, 0], [0.7, 0.7, 0.7])], 3).value == pytest.approx(1 / 3)
    # Nothing finished: wrong, although the verifier would have accepted it.
    assert best_of_k([problem([0, 0], [1, 1], [NAN, NAN])], 1).value == 0


@settings(deadline=None)  # a busy machine fails no arithmetic
@given(problems())
def test_every_figure_is_the_mean_over_all_subsets(case):
    samples, k = case
    assert maj_at_k([samples], k).value == pytest.approx(brute_vote(samples, k, np.ones(len(samples))))
    weights = [0.0 if math.isnan(score) else min(max(score, 0.0), 1.0) for score in samples.scores]
    assert weighted_maj_at_k([samples], k).value == pytest.approx(brute_vote(samples, k, weights))
    passed, best = 0.0, 0.0
    for subset in combinations(range(len(samples)), k):
        passed += any(samples.correct[list(subset)])
        scored = [sample for sample in subset if not math.isnan(samples.scores[sample])]
        highest = [sample for sample in scored if samples.scores[sample] == max(samples.scores[scored])]
        best += samples.correct[highest].mean() if highest else 0.0
    assert pass_at_k([samples], k).value == pytest.approx(passed / math.comb(len(samples), k))
    assert best_of_k([samples], k).value == pytest.approx(best / math.comb(len(samples), k))


@settings(deadline=None)  # a busy machine fails no arithmetic
@given(problems(), st.randoms(use_true_random=False))
def test_nothing_depends_on_the_order_of_samples(case, random):
    samples, k = case
    order = random.sample(range(len(samples)), len(samples))
    shuffled = ProblemSamples(samples.answers[order], samples.correct[order], samples.scores[order])
    for figure in (pass_at_k, best_of_k, maj_at_k, weighted_maj_at_k):
        assert figure([samples], k).value == pytest.approx(figure([shuffled], k).value)


def test_sums_that_differ_by_rounding_alone_are_a_tie():
    # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in float64.
    samples = ProblemSamples(
        np.array([0, 0, 0, 1, 1, 1]),
        np.array([1, 1, 1, 0, 0, 0], bool),
        np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1]),
    )
    assert weighted_maj_at_k([samples], 6).value == 0.5


@pytest.mark.parametrize("vote", [maj_at_k, weighted_maj_at_k])
def test_a_draw_agrees_with_all_subsets_within_its_error(vote, monkeypatch):
    rng = np.random.default_rng(5)
    sets = [random_problem(rng, n) for n in [10, 12] * 6]
    exact = vote(sets, 5)
    assert exact.standard_error == 0
    monkeypatch.setattr(voting, "EXACT_SUBSETS", 100)
    distances = []
    for seed in range(40):
        drawn = vote(sets, 5, seed=seed, draws=300)
        assert 0 < drawn.standard_error < 0.02
        assert drawn.value == pytest.approx(drawn.by_problem.mean())
        distances.append((drawn.value - exact.value) / drawn.standard_error)
    # Standardised by its own error the distance has mean 0 and variance 1: over 40 seeds the mean square lies
    # in 1 +- 3.5 sqrt(2/40).
    assert abs(np.mean(distances)) < 3.5 / math.sqrt(40)
    assert 0.3 < np.mean(np.square(distances)) < 1.8
    assert vote(sets, 5, seed=1).value == vote(sets, 5, seed=1).value != vote(sets, 5, seed=2).value


def test_subsets_are_drawn_only_beyond_the_limit():
    rng = np.random.default_rng(0)
    assert math.comb(16, 4) < voting.EXACT_SUBSETS < math.comb(16, 8)
    sixteen = [random_problem(rng, 16)]
    assert maj_at_k(sixteen, 4).standard_error == 0
    assert maj_at_k(sixteen, 8).standard_error > 0


def test_k_outside_of_the_samples_is_refused():
    for figure in (pass_at_k, best_of_k, maj_at_k, weighted_maj_at_k):
        for k in (0, 3):
            with pytest.raises(
                ValueError,
                match=f"k is {k}; it must be from 1 to 2, the fewest samples of any of the 2 problems",
            ):
                figure([problem([0, 1, 1], [1, 0, 0], [1, 1, 1]), problem([0, 1], [1, 0], [1, 1])], k)
        with pytest.raises(ValueError, match="any of the 0 problems"):
            figure([], 1)


def test_without_scores_there_is_no_weighted_vote():
    for figure in (weighted_maj_at_k, best_of_k):
        with pytest.raises(ValueError, match="the samples have no scores"):
            figure([problem([0], [1])], 1)


class TestAnswerClasses:
    def test_equal_answers_share_a_class_numbered_by_appearance(self):
        asked = []

        def equal(first, second):
            asked.append((first, second))
            return float(first) == float(second)

        assert answer_classes(["3", "0.5", ".5", "3", "3.0"], equal) == [0, 1, 1, 0, 0]
        assert len(asked) == len(set(asked)), "no pair is compared twice"
        assert all(first != second for first, second in asked), "equal texts need no comparison"
        assert answer_classes([], equal) == []

    @given(st.permutations(["a", "b", "cc", "dd", "ee", "b"]))
    def test_classes_do_not_depend_on_the_order_of_samples(self, answers):
        """Also where equality is not transitive: b is equal to both a and cc, which differ."""
        pairs = {("a", "b"), ("b", "cc"), ("dd", "ee")}
        found = answer_classes(answers, lambda first, second: (first, second) in pairs)
        together = {}
        for answer, number in zip(answers, found, strict=True):
            together.setdefault(number, set()).add(answer)
        assert sorted(map(sorted, together.values())) == [["a", "b"], ["cc"], ["dd", "ee"]]
