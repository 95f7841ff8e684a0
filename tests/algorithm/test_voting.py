import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.algorithm.voting import maj_at_k, majority_vote


def same_number(left, right):
    return float(left) == float(right)


def test_majority_by_hand():
    assert majority_vote(["3", "5", "5", "3", "5"]) == 1


def test_equal_answers_pool_their_votes():
    answers = ["2", "0.5", "2", "1/2", ".5"]
    assert majority_vote(answers) == 0
    assert majority_vote(["2", "0.5", "2", "0.50", ".5"], equal=same_number) == 1


def test_reference_fault_8_weighted_vote_takes_the_largest_sum_of_scores():
    # Sums: "3" 0.9, "5" 0.1 + 0.2 + 0.3.
    assert majority_vote(["5", "3", "5", "5"], [0.1, 0.9, 0.2, 0.3]) == 1


def test_none_casts_no_vote():
    assert majority_vote([None, None, "4"], [math.nan, 1.0, 0.0]) == 2
    assert majority_vote([None, None]) is None
    assert majority_vote([]) is None


def test_tie_goes_to_the_answer_seen_first():
    assert majority_vote(["7", "9", "9", "7"]) == 0
    assert majority_vote(["7", "9"], [0.0, 0.0]) == 0
    # Added one by one, 0.1 + 0.2 + 0.3 is more than 0.3 + 0.2 + 0.1.
    assert majority_vote(["9", "9", "9", "7", "7", "7"], [0.3, 0.2, 0.1, 0.1, 0.2, 0.3]) == 0


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_a_clear_majority_does_not_depend_on_order(answers, random):
    counts = sorted((answers.count(answer), answer) for answer in set(answers))
    if len(counts) > 1 and counts[-1][0] == counts[-2][0]:
        return
    shuffled = random.sample(answers, len(answers))
    chosen = majority_vote(shuffled)
    assert shuffled[chosen] == counts[-1][1]
    assert chosen == shuffled.index(counts[-1][1])


@pytest.mark.parametrize("weight", [-0.1, math.nan])
def test_weights_that_were_not_clipped_are_refused(weight):
    with pytest.raises(ValueError, match="the weight of sample 1 is"):
        majority_vote(["3", "5"], [0.5, weight])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="shorter"):
        majority_vote(["3", "5"], [0.5])


def test_accuracy_of_the_vote():
    answers = [["1", "2", "2"], ["4", "4", "5"], [None, None, None], ["6", "6.0", "7"]]
    correct = [[True, False, False], [True, True, False], [False] * 3, [True, True, False]]
    assert maj_at_k(answers, correct) == 0.5
    assert maj_at_k(answers, correct, [[0.9, 0.1, 0.1], [1, 1, 1], [0, 0, 0], [0.4, 0.4, 0.7]]) == 0.5
    weights = [[0.9, 0.1, 0.1], [1, 1, 1], [0, 0, 0], [0.4, 0.4, 0.7]]
    assert maj_at_k([*answers[:3], ["6", "6.0", "7"]], correct, weights, equal=same_number) == 0.75


def test_no_problems_have_no_accuracy():
    assert math.isnan(maj_at_k([], []))
