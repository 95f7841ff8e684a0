"""The verifier `math_verify_plain`."""

import threading

import pytest

from actors.math_check import verify_math
from orchestrator.messages.verdicts import Status


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
    expected = {Status.CORRECT: 1.0, Status.ERROR: None}.get(status, 0.0)
    assert verdict.reward == expected, "a check that failed gives no reward"
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
