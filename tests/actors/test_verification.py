"""Boxed answers, verdicts of math-verify, and the worker that checks a group."""

import re
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.math_check import DEFAULT_VERIFIER, boxed_answers, only_answer, verify_math
from actors.verification import VerificationWorker, load_verifier
from orchestrator.errors import ConfigError
from orchestrator.messages.verdicts import Status, Verdict


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("", []),
        ("the answer is 5", []),
        (r"so \boxed{5}.", ["5"]),
        (r"\boxed {5} and \boxed{ 6 }", ["5", "6"]),
        (r"\boxed{}", [""]),
        (r"\boxed{\frac{1}{\sqrt{2}}}", [r"\frac{1}{\sqrt{2}}"]),
        (r"\boxed{\left\{x : x>0\right.}", [r"\left\{x : x>0\right."]),
        (r"\boxed{\begin{matrix}1\\{2}\end{matrix}}", [r"\begin{matrix}1\\{2}\end{matrix}"]),
        (r"\boxed{\boxed{5}}", [r"\boxed{5}", "5"]),
        (r"\boxed{4", [None]),
        (r"\boxed{\frac{1}{2}", [None]),
        (r"\boxed{5} or rather \boxed{", ["5", None]),
        (r"{ \boxed{5}", ["5"]),
        (r"} \boxed{5}", ["5"]),
        (r"\fbox{5} \boxed5 \boxedx{5} boxed{5}", []),
        (r"\\boxed{5}", ["5"]),
        (r"line\\\boxed{5}", ["5"]),
    ],
)
def test_boxed_answers(text, answers):
    assert boxed_answers(text) == answers


PIECES = st.sampled_from(["\\", "{", "}", r"\boxed{", r"\boxed", r"\{", "boxed{", "5", " "])
BALANCED = st.recursive(
    st.sampled_from(["", "x", r"\{", r"\}", r"\\", r"\frac"]),
    lambda inner: st.lists(inner.map(lambda text: f"{{{text}}}") | inner, max_size=4).map(" ".join),
)


@given(st.text() | st.lists(PIECES).map("".join))
def test_extraction_never_raises_and_sees_every_opening(text):
    answers = boxed_answers(text)
    assert len(answers) == len(re.findall(r"\\boxed\s*\{", text))
    assert all(answer is None or answer in text for answer in answers)


@given(BALANCED)
def test_any_balanced_text_is_extracted_from_its_box(inner):
    assert boxed_answers(rf"text \boxed{{{inner}}} text") == [inner.strip()]


def test_extraction_is_linear_in_the_text():
    start = time.monotonic()
    boxed_answers(r"\boxed{" * 100_000)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("response", "reference", "status"),
    [
        (r"6*7=42, so \boxed{42}", "42", Status.CORRECT),
        (r"6*7=43, so \boxed{43}", "42", Status.WRONG),
        ("the answer is 42", "42", Status.NO_ANSWER),
        (r"\boxed{4", "42", Status.NO_ANSWER),
        (r"\boxed{ }", "42", Status.NO_ANSWER),
        (r"\fbox{42}", "42", Status.NO_ANSWER),
        (r"\boxed{42}, again \boxed{42}", "42", Status.FORMAT),
        (r"\boxed{41}, no, \boxed{42}", "42", Status.FORMAT),
        (r"\boxed{42}, that is \boxed{", "42", Status.FORMAT),
        (r"\boxed{42}", "", Status.ERROR),
        (r"\boxed{42}", r"\frac{1}{", Status.ERROR),
        (r"\boxed{\frac{1}{2", r"\frac{1}{", Status.NO_ANSWER),
        (r"\boxed{---}", "42", Status.WRONG),
    ],
)
def test_statuses(response, reference, status):
    verdict = verify_math(response, reference)
    assert verdict.status is status
    assert verdict.reward == (1.0 if status is Status.CORRECT else 0.0)
    assert bool(verdict.detail) == (status not in (Status.CORRECT, Status.WRONG))


def test_an_unreadable_reference_is_named():
    assert r"\frac{1}{" in verify_math(r"\boxed{1}", r"\frac{1}{").detail.replace("\\\\", "\\")


def test_a_failure_of_math_verify_is_an_error_and_not_a_wrong_answer(monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("cannot compare")

    monkeypatch.setattr("math_verify.verify", broken)
    verdict = verify_math(r"\boxed{42}", "42")
    assert verdict.status is Status.ERROR
    assert "cannot compare" in verdict.detail


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("0.5", "1/2"),
        (r"\frac12", "0.5"),
        ("1,000", "1000"),
        ("42.0", "42"),
        ("-3", "-3"),
        ("007", "7"),
        (r"\{2,1\}", r"\{1,2\}"),
        ("2,1", "1,2"),
        ("[0,1)", "[0,1)"),
        (r"5\text{ cm}", "5"),
        (r"90^\circ", "90"),
        (r"50\%", "0.5"),
        ("x=5", "5"),
        ("(x-1)(x+1)", "x^2-1"),
        (r"\text{Monday}", "Monday"),
        (r"\text{(B)}", "B"),
        ("0.001", "1e-3"),
        ("1.5e+10", "15000000000"),
        ("5", "$5$"),
        ("5", r"\boxed{5}"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
        ("---", "---"),
    ],
)
def test_equal_answers(answer, reference):
    assert verify_math(rf"\boxed{{{answer}}}", reference).status is Status.CORRECT


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("0.3333", "1/3"),
        ("(2,1)", "(1,2)"),
        ("[0,1]", "[0,1)"),
        ("3.14", r"\pi"),
        ("x", "y"),
        (r"\infty", "5"),
        ("12", "1,2"),
        ("1,2", "12"),
    ],
)
def test_different_answers(answer, reference):
    assert verify_math(rf"\boxed{{{answer}}}", reference).status is Status.WRONG


def test_reference_fault_5_outside_the_main_thread_a_correct_answer_stays_correct():
    """The reference lets math-verify set SIGALRM, which raises in other threads and gives reward 0."""
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(verify_math(r"\boxed{\frac12}", "0.5")))
    thread.start()
    thread.join()
    assert [verdict.status for verdict in verdicts] == [Status.CORRECT]


def test_load_verifier():
    assert load_verifier(DEFAULT_VERIFIER) is verify_math
    with pytest.raises(ConfigError, match="no_such_module"):
        load_verifier("no_such_module:verify")


def worker(*args, **options):
    return closing(VerificationWorker(*args, **options))


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


def test_a_big_integer_times_out_and_the_rest_of_the_group_is_checked():
    with worker(timeout_s=1.0) as verification:
        start = time.monotonic()
        group = verification.verify(
            [r"\boxed{9^{9^{9}}}", r"\boxed{42}", r"again \boxed{9^{9^{9}}}"], [True] * 3, "42"
        )
        assert [verdict.status for verdict in group] == [Status.TIMEOUT, Status.CORRECT, Status.TIMEOUT]
        assert group[0].answer == "9^{9^{9}}"
        assert group[0].seconds > 1.0, "the deadline that it ran into"
        assert group[2].seconds is None, "equal answers of a group wait for one deadline, not two"
        assert time.monotonic() - start < 10
        (again,) = verification.verify([r"\boxed{9^{9^{9}}}"], [True], "42")
        assert again.status is Status.TIMEOUT
        assert again.seconds > 1.0, "a timeout is not remembered"


@pytest.mark.parametrize(
    ("reference", "status", "detail"),
    [
        ("sleep", Status.TIMEOUT, "took longer than 0.5 s"),
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


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{12}", "12"),
        (r"\boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        ("none", None),
        (r"\boxed{}", None),
        (r"\boxed{12", None),
        (r"\boxed{12} \boxed{12}", None),
        (r"\boxed{12} and \boxed{", None),
        (r"\boxed{} and \boxed{12}", None),
    ],
)
def test_a_response_has_a_vote_when_it_has_exactly_one_complete_box_that_is_not_empty(response, answer):
    assert only_answer(response) == answer
    verdict = verify_math(response, "12")
    assert (verdict.status in (Status.CORRECT, Status.WRONG)) == (answer is not None), "as in an evaluation"


def test_equal_answers_are_pooled_and_what_hangs_is_counted():
    with closing(VerificationWorker(timeout_s=2.0)) as worker:
        assert worker.pool_answers(["7", "-7", "007", "+7", "0", "-0", "7" * 5000]) == [0, 1, 0, 0, 2, 2, 3]
        assert worker.pooling_stats() == {"comparisons": 0, "timeout": 0, "error": 0}, (
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
