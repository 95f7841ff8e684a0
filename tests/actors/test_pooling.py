"""Answers to one problem, pooled in a child process."""

import threading
from contextlib import closing

import numpy as np
import pytest

from actors.deadline import DeadlineExecutor
from actors.pooling import EQUALITY, PLAIN_EQUALITY, AnswerComparer, AnswerPool, PoolingAbandoned
from orchestrator.errors import ConfigError


def test_integers_and_equal_texts_need_no_comparison():
    with closing(AnswerComparer()) as comparer:
        assert AnswerPool(comparer).classes(["7", "-7", "007", "+7", "0", "-0", "7" * 5000, "x", "x"]) == [
            0, 1, 0, 0, 2, 2, 3, 4, 4
        ]  # fmt: skip
        assert comparer.counts["comparisons"] == 4, "only x with the four numbers"


def test_classes_are_the_same_in_any_order():
    answers = [r"\frac12", "3", "0.5", "x=3", "1/2", "{1,2}", r"\{2,1\}"]
    with closing(AnswerComparer()) as comparer:
        assert AnswerPool(comparer).classes(answers) == [0, 1, 0, 1, 0, 2, 2]
        order = np.random.default_rng(0).permutation(len(answers))
        shuffled = AnswerPool(comparer).classes([answers[index] for index in order])
    original = [[0, 1, 0, 1, 0, 2, 2][index] for index in order]
    assert len(set(zip(shuffled, original, strict=True))) == 3


def test_a_pool_compares_only_the_pairs_that_are_new():
    with closing(AnswerComparer()) as comparer:
        pool = AnswerPool(comparer)
        assert pool.classes(["1/2", "0.5"]) == [0, 0]
        assert pool.classes(["1/2", "0.5"]) == [0, 0]
        assert comparer.counts["comparisons"] == 1
        assert pool.classes(["1/2", "0.5", r"\frac12"]) == [0, 0, 0]
        assert comparer.counts["comparisons"] == 2


def test_an_answer_that_hangs_twice_is_not_compared_again():
    with closing(AnswerComparer(1.0, PLAIN_EQUALITY)) as comparer:  # `same` bounds sizes, and does not hang
        pool = AnswerPool(comparer)
        for _ in range(2):
            assert pool.classes(["9^{9^{9^9}}", "x+1", "1+x", "x+2", "x+3"]) == [0, 1, 1, 2, 3]
        assert comparer.counts["timeout"] == 2


def test_a_start_that_failed_is_tried_again_by_the_next_comparison():
    # A start fails only after two minutes on an overloaded machine, hence the function that fails once.
    starts = iter([ConfigError("not warm within 120 s"), None])

    def start():
        if error := next(starts):
            raise error
        return DeadlineExecutor(EQUALITY, 10.0)

    with closing(AnswerComparer(start=start)) as comparer:
        with pytest.raises(ConfigError, match="not warm"):
            AnswerPool(comparer).classes(["1/2", "0.5"])
        assert AnswerPool(comparer).classes(["1/2", "0.5"]) == [0, 0]


def test_an_abandoned_pool_stops_at_its_next_comparison():
    with closing(AnswerComparer(2.0, PLAIN_EQUALITY)) as comparer:
        assert comparer.equal("1/2", "0.5"), "the child process is warm"
        pool = AnswerPool(comparer)
        # The first comparison hangs until its deadline; the pool is abandoned in the meantime.
        threading.Timer(0.3, pool.abandon).start()
        with pytest.raises(PoolingAbandoned):
            pool.classes(["x+1", "9^{9^{9^9}}", "9^{9^{9^9}}+1"])
        assert dict(comparer.counts) == {"comparisons": 2, "timeout": 1}
