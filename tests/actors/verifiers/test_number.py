"""The verifier `number`, on inputs that are hard to read."""

import pytest

from actors.verifiers.loading import loaded_verifier
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.verdicts import Status
from tests.actors.verifiers.made import verdict_of


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1234567.5", "1,234,567.5"),
        ("1234567", "1 234 567"),
        ("-5", "−5"),
        ("0.5", ".5"),
        ("5", "5."),
        ("3.0", "+3"),
        ("0.75", r"\frac{3}{4}"),
        ("0.75", r"\dfrac34"),
        ("1.5", "1 1/2"),
        ("6.02e23", r"6.02 \times 10^{23}"),
        ("1200", "1.2e3"),
        ("0.5", "50%"),
        ("50%", "0.5"),
        ("12.5%", r"12.5\%"),
        ("$1,000", "$1000"),
        ("-5 dollars", "-$5"),
        ("5000 m", "5 km"),
        ("5 km", "5"),
        ("5", "5 apples"),
        ("90 minutes", "1.5 hours"),
        ("10000000000000000000001", "10,000,000,000,000,000,000,001"),
    ],
)
def test_right_numbers(reference, answer):
    assert verdict_of("number", rf"so \boxed{{{answer}}}", reference).status is Status.CORRECT


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("5", "5 or 6"),
        ("5", "6"),
        ("50%", "50"),
        ("5 km", "5 m"),
        ("5 km", "5 kg"),
        ("5 km", "5 bananas"),
        ("10000000000000000000001", "10000000000000000000002"),
        ("0.333", "1/3"),
        ("2", "1/0"),
        ("1", "1e9999"),
        ("12", "1,2"),
        ("5", "-5"),
        ("5", "five"),
    ],
)
def test_wrong_numbers(reference, answer):
    assert verdict_of("number", rf"so \boxed{{{answer}}}", reference).status is Status.WRONG


@pytest.mark.parametrize(
    ("settings", "reference", "answer", "right"),
    [
        ({"tolerance": 0.01}, "100", "101", True),
        ({"tolerance": 0.01}, "100", "101.01", False),
        ({"tolerance": 0.01}, "0", "0.001", False),
        ({"absolute": 0.5}, "0", "0.5", True),
        ({"absolute": 0.1, "tolerance": 0.01}, "1", "1.1", True),
        ({"tolerance": 0.1}, "-100", "-91", True),
        ({"bare_percent": True}, "50%", "50", True),
        ({"bare_percent": True}, "50", "0.5", False),
        ({"unit": "required"}, "5 km", "5", False),
        ({"unit": "required"}, "5 km", "5000 m", True),
        ({"unit": "required"}, "5 widgets", "5 gadgets", False),
        ({"unit": "ignored"}, "5 km", "5 m", True),
        ({"tolerance": 0.001}, "5 km", "5004 m", True),
    ],
)
def test_settings(settings, reference, answer, right):
    verdict = verdict_of({"name": "number", **settings}, rf"\boxed{{{answer}}}", reference)
    assert verdict.status is (Status.CORRECT if right else Status.WRONG), verdict.detail


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("The answer is 42.", Status.CORRECT),
        ("step 1: 7\n#### 42", Status.CORRECT),
        ("**Answer:** **42**", Status.CORRECT),
        ("I get 42", Status.NO_ANSWER),
        (r"\boxed{42} and \boxed{42}", Status.FORMAT),
        (r"\boxed{42", Status.NO_ANSWER),
        ("", Status.NO_ANSWER),
    ],
)
def test_where_the_answer_stands(response, status):
    assert verdict_of("number", response, "42").status is status


def test_the_last_number_and_a_pattern_of_ones_own():
    assert verdict_of({"name": "number", "last_number": True}, "7 - 1 = 6, so 42 cats", "42").reward == 1
    pattern = {"name": "number", "answer_pattern": r"<a>(.*?)</a>"}
    assert verdict_of(pattern, "<a>1</a> no: <a>42</a>, not 7", "42").reward == 1
    assert verdict_of(pattern, "42", "42").status is Status.NO_ANSWER


def test_a_reference_that_is_no_number_is_an_error_and_never_a_wrong_answer():
    verdict = verdict_of("number", r"\boxed{5}", "five or so")
    assert (verdict.status, verdict.reward) == (Status.ERROR, None)
    assert "line 1" in verdict.detail


def test_votes_pool_exactly():
    same = loaded_verifier(verifier_text({"name": "number", "tolerance": 0.5})).same
    assert same("1,000", "1000.0")
    assert same("5 km", "5000 m")
    assert not same("1", "1.1"), "a tolerance would not be transitive"
