"""The verifiers `text` and `token_f1`."""

import pytest

from orchestrator.messages.verdicts import Status
from tests.actors.verifiers.made import about, verdict_of


@pytest.mark.parametrize(
    ("reference", "response", "right"),
    [
        ("New York", "The answer is new  york.", True),
        ("New York", '"New York"', True),
        ("café", "cafe\u0301", True),
        ("ｆｕｌｌ", "full", True),
        ("C++", "C", False),
        ("C#", "C++", False),
        ("5%", "5", False),
        ("no", "not", False),
        ("New York", "New York or Boston", False),
        ("...", "...", True),
        ("", "x", False),
    ],
)
def test_texts(reference, response, right):
    assert verdict_of("text", response, reference).status is (Status.CORRECT if right else Status.WRONG)


def test_other_right_answers_case_and_missing_ones():
    problem = about("NYC", aliases=["New York", "Big Apple"])
    assert verdict_of({"name": "text", "aliases_field": "aliases"}, "big apple", problem).reward == 1
    assert verdict_of({"name": "text", "keep_case": True}, "nyc", "NYC").reward == 0
    assert verdict_of("text", " \n", "x").status is Status.NO_ANSWER
    assert verdict_of("text", "x", None).status is Status.ERROR


def test_f1_by_hand():
    # The articles do not count: cat sat mat against cat sat on mat.
    verdict = verdict_of("token_f1", "The cat sat, a mat!", "the cat sat on the mat")
    assert verdict.reward == pytest.approx(2 * 3 / (3 + 4))
    assert verdict.parts == {"precision": 1.0, "recall": pytest.approx(0.75)}
    assert verdict.status is Status.CORRECT, "above 0.5"
    assert verdict_of("token_f1", "dog dog dog", "dog").reward == pytest.approx(0.5)
    assert verdict_of("token_f1", "dog dog dog", "dog").status is Status.WRONG, "0.5 is not above 0.5"
    assert verdict_of("token_f1", "the", "a").reward == 1, "both are empty"
    assert verdict_of("token_f1", "the", "cat").reward == 0


def test_f1_takes_the_best_alias():
    problem = about("Gabriel Fauré", names=["Fauré"])
    settings = {"name": "token_f1", "aliases_field": "names"}
    assert verdict_of(settings, "fauré", problem).reward == 1
