"""The verifier `choice`, on the ways in which models name an option."""

import pytest

from orchestrator.messages.verdicts import Status
from tests.actors.verifiers.made import about, verdict_of

OPTIONS = ["Paris", "A dog", "42", "None of the above"]


@pytest.mark.parametrize(
    "response",
    [
        "B",
        "(B)",
        "b)",
        "The answer is (B).",
        "The answer is B.",
        "the correct answer is: **B**",
        "Answer: B) A dog",
        "Final answer: option B",
        r"\boxed{B}",
        r"\boxed{\text{(B)}}",
        r"\boxed{b}",
        "I thought of A and of C.\n\nThe answer is (B)",
        "A would be wrong.\nB",
        "The answer is A dog.",
        "#### B",
    ],
)
def test_right_letters(response):
    assert verdict_of("choice", response, about("B", options=OPTIONS)).status is Status.CORRECT


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("The answer is (A).", Status.WRONG),
        ("The answer is A or B", Status.FORMAT),
        ("The answer is (A) and (B)", Status.FORMAT),
        ("The answer is unclear", Status.NO_ANSWER),
        ("", Status.NO_ANSWER),
        ("The answer is Paris", Status.WRONG),
        (r"\boxed{A} \boxed{B}", Status.FORMAT),
    ],
)
def test_other_responses(response, status):
    assert verdict_of("choice", response, about("B", options=OPTIONS)).status is status


@pytest.mark.parametrize(
    ("reference", "settings", "fields"),
    [
        ("1", {}, {"options": OPTIONS}),
        ("2", {"first_index": 1}, {"options": OPTIONS}),
        ("a dog", {}, {"options": OPTIONS}),
        ("(B)", {}, {}),
        ("B", {"options_field": "choices"}, {"choices": {"label": ["A", "B"], "text": ["x", "A dog"]}}),
        ("B", {}, {"options": {"A": "x", "B": "A dog"}}),
    ],
)
def test_forms_of_reference_and_options(reference, settings, fields):
    problem = about(reference, **fields)
    assert verdict_of({"name": "choice", **settings}, "The answer is (B)", problem).status is Status.CORRECT


def test_the_text_of_an_option_wins_over_an_index():
    problem = about("42", options=OPTIONS)
    assert verdict_of("choice", "(C)", problem).status is Status.CORRECT


def test_a_reference_that_names_no_option_is_an_error():
    assert verdict_of("choice", "B", about("Rome", options=OPTIONS)).status is Status.ERROR
    assert verdict_of("choice", "B", about(None, options=OPTIONS)).status is Status.ERROR
