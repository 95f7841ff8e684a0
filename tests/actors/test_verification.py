"""The worker that checks a group, and the verifiers by name."""

from contextlib import closing

import numpy as np
import pytest

from actors.verification import PLAIN_VERIFIER, VerificationWorker
from orchestrator.errors import ConfigError
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import UNJUDGED, Status, Verdict


def test_an_unusable_verifier_is_refused_at_the_start():
    with pytest.raises(ConfigError, match=r"no verifier is named 'maths' \(nearest: math\)"):
        VerificationWorker("maths")
    with pytest.raises(ConfigError, match="no_such_module"):
        VerificationWorker("no_such_module:verify")


class Worker(VerificationWorker):
    """A worker that checks against a reference alone."""

    def verify(self, texts, finished, reference):
        return super().verify(texts, finished, Problem.from_text(reference, "?", reference))


def worker(*args, **options):
    return closing(Worker(*args, **options))


@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_of_many_digits_are_compared(digits):
    number = "7" * digits
    with worker(timeout_s=20.0) as verification:
        texts = [rf"\boxed{{{answer}}}" for answer in (number, number[:-1] + "8", "7")]
        statuses = [verdict.status for verdict in verification.verify(texts, [True] * 3, number)]
        assert statuses == [Status.CORRECT, Status.WRONG, Status.WRONG]


def test_a_group_is_checked_in_order_and_equal_answers_once():
    with worker(timeout_s=20.0) as verification:
        texts = [r"\boxed{0.5}", r"first, \boxed{0.5}", r"\boxed{1}", "none", r"\boxed{\frac12}"]
        verdicts = verification.verify(texts, [True] * 5, "1/2")
        assert [verdict.status for verdict in verdicts] == [
            Status.CORRECT,
            Status.CORRECT,
            Status.WRONG,
            Status.NO_ANSWER,
            Status.CORRECT,
        ]
        assert [verdict.seconds is None for verdict in verdicts] == [False, True, False, False, False], (
            "one has another's verdict"
        )
        again = verification.verify(texts, [True] * 5, "1/2")
        assert {verdict.seconds for verdict in again} == {None}, "all come from the cache"
        assert (
            verification.verify(texts[:1], [True], "2/3")[0].status is Status.WRONG
        )  # another reference, another check
        assert verification.ping()


def test_a_response_that_was_cut_off_counts_when_its_box_is_complete():
    with worker(timeout_s=20.0) as verification:
        complete, missing, ended = verification.verify(
            [r"\boxed{5} and", "so 2+", "so 2+"], [False, False, True], "5"
        )
    assert complete.status is Status.CORRECT
    assert missing.status is ended.status is Status.NO_ANSWER
    assert "cut off" in missing.detail
    assert "cut off" not in ended.detail


def test_only_what_follows_the_end_of_thinking_is_checked():
    problem = Problem.from_text("a", "1+1?", "2", answer_after="</think>")
    texts = [r"\boxed{1}</think>\boxed{2}", r"\boxed{2}</think>\boxed{1}", r"\boxed{2}"]
    with closing(VerificationWorker()) as checking:
        first, second, third = checking.verify(texts, [True, True, True], problem)
    assert [first.status, second.status] == [Status.CORRECT, Status.WRONG]
    assert third.status is Status.NO_ANSWER
    assert third.detail.endswith("the response was cut off")


def test_a_big_integer_times_out_and_the_rest_of_the_group_is_checked():
    with worker(PLAIN_VERIFIER, timeout_s=1.0) as verification:
        group = verification.verify(
            [r"\boxed{9^{9^{9}}}", r"\boxed{42}", r"again \boxed{9^{9^{9}}}"], [True] * 3, "42"
        )
        assert [verdict.status for verdict in group] == [Status.TIMEOUT, Status.CORRECT, Status.TIMEOUT]
        assert group[0].answer == "9^{9^{9}}"
        assert group[0].seconds > 1.0, "the deadline that it ran into"
        assert group[2].seconds is None, "equal answers of a group wait for one deadline, not two"
        (again,) = verification.verify([r"\boxed{9^{9^{9}}}"], [True], "42")
        assert again.status is Status.TIMEOUT
        assert again.seconds > 1.0, "a timeout is not remembered"


@pytest.mark.parametrize(
    ("reference", "status", "detail"),
    [
        ("sleep", Status.TIMEOUT, "took longer than 0.5 s"),
        ("memory", Status.MEMORY, "took more than 2048 MiB of memory"),
        ("exit", Status.ERROR, "exited with status 3"),
        ("raise", Status.ERROR, "RuntimeError: no luck"),
        ("bool", Status.ERROR, "returned bool, not a Verdict"),
    ],
)
def test_a_failure_of_another_verifier_has_a_status_and_the_next_check_works(reference, status, detail):
    with worker("deadline_functions:obey", timeout_s=0.5) as verification:
        (verdict,) = verification.verify(["a"], [True], reference)
        assert verdict.status is status
        assert detail in verdict.detail
        assert verification.verify(["a", "b"], [True, True], "a") == [
            Verdict(Status.CORRECT, "a"),
            Verdict(Status.WRONG, "b"),
        ]


def test_another_verifier_sees_every_different_response():
    with worker("deadline_functions:obey", timeout_s=5.0) as verification:
        other, same = verification.verify([r"x \boxed{1}", r"y \boxed{1}"], [True, True], r"y \boxed{1}")
        assert other.status is Status.WRONG
        assert same.status is Status.CORRECT
        assert None not in (other.seconds, same.seconds), "each has a check"


def test_the_cache_is_bounded_and_forgets_the_least_recently_used():
    with worker("deadline_functions:obey", timeout_s=5.0, cache_size=2) as verification:
        responses = ("a", "b", "a", "c", "a", "b")  # c drops b
        verdicts = [verification.verify([response], [True], "a")[0] for response in responses]
    assert [verdict.seconds is None for verdict in verdicts] == [False, False, True, False, True, False]


def test_equal_answers_are_pooled_and_what_hangs_is_counted():
    with closing(VerificationWorker(PLAIN_VERIFIER, timeout_s=2.0)) as worker:
        assert worker.pool_answers(["7", "-7", "007", "+7", "0", "-0", "7" * 5000]) == [0, 1, 0, 0, 2, 2, 3]
        assert worker.pooling_stats() == dict.fromkeys(("comparisons", *UNJUDGED), 0), (
            "integers and equal texts need no check"
        )
        answers = [r"\frac12", "3", "0.5", "x=3", "1/2", "{1,2}", r"\{2,1\}"]
        assert worker.pool_answers(answers) == [0, 1, 0, 1, 0, 2, 2]
        order = np.random.default_rng(0).permutation(len(answers))
        shuffled = worker.pool_answers([answers[index] for index in order])
        original = [[0, 1, 0, 1, 0, 2, 2][index] for index in order]
        assert len(set(zip(shuffled, original, strict=True))) == 3, "the same classes in any order"
        assert worker.pool_answers(["9^{9^{9^9}}", "x+1", "1+x", "x+2", "x+3"]) == [0, 1, 1, 2, 3]
        assert worker.pooling_stats()["timeout"] == 2, "an answer that hangs is compared only twice"
        assert worker.pool_answers([]) == []


def test_votes_are_pooled_by_the_verifier_of_the_run():
    answers = ["10 000", "10000", "0", r"x \equiv 5 \pmod 7", "7"]
    with worker() as verification:
        assert verification.pool_answers(answers) == [0, 0, 1, 2, 3]
    with worker(PLAIN_VERIFIER) as verification:
        assert verification.pool_answers(answers) != [0, 0, 1, 2, 3]
