"""The verifier `weighted`, and how parts that fail count."""

import pytest

from actors.verifiers.weighted import combined
from orchestrator.config.verifiers import WeightedSettings
from orchestrator.messages.verdicts import Status, Verdict

RIGHT, WRONG = Verdict(Status.CORRECT, "4"), Verdict(Status.WRONG, "5")
HALF = Verdict(Status.WRONG, reward=0.5, parts={"tests": 0.5})
ERROR, TIMEOUT = Verdict(Status.ERROR, None, "away"), Verdict(Status.TIMEOUT)
MEMORY = Verdict(Status.MEMORY)
FORMAT = Verdict(Status.FORMAT)


def rule(name):
    parts = {"a": {"verifier": "math", "weight": 3}, "b": {"verifier": {"name": "pattern", "pattern": "x"}}}
    return WeightedSettings(name="weighted", parts=parts, rule=name)


@pytest.mark.parametrize(
    ("name", "a", "b", "reward"),
    [
        ("sum", RIGHT, WRONG, 0.75),
        ("sum", WRONG, HALF, 0.125),
        ("sum", RIGHT, RIGHT, 1.0),
        ("all", RIGHT, HALF, 0.5),
        ("all", RIGHT, FORMAT, 0.0),
        ("all", WRONG, ERROR, 0.0),
        ("any", HALF, WRONG, 0.5),
        ("any", RIGHT, ERROR, 1.0),
    ],
)
def test_rules(name, a, b, reward):
    assert combined(rule(name), {"a": a, "b": b}).reward == pytest.approx(reward)


@pytest.mark.parametrize(
    ("name", "a", "b", "status"),
    [
        ("sum", RIGHT, ERROR, Status.ERROR),
        ("sum", RIGHT, MEMORY, Status.MEMORY),
        ("sum", TIMEOUT, MEMORY, Status.ERROR),
        ("sum", WRONG, TIMEOUT, Status.TIMEOUT),
        ("all", RIGHT, TIMEOUT, Status.TIMEOUT),
        ("any", HALF, ERROR, Status.ERROR),
        ("sum", TIMEOUT, ERROR, Status.ERROR),
    ],
)
def test_a_part_without_a_verdict_leaves_the_whole_without_one(name, a, b, status):
    verdict = combined(rule(name), {"a": a, "b": b})
    assert (verdict.status, verdict.reward) == (status, None)


def test_parts_have_names_and_the_answer_is_kept():
    verdict = combined(rule("sum"), {"a": RIGHT, "b": HALF})
    assert verdict.parts == {"a": 1.0, "b": 0.5, "b.tests": 0.5}
    assert verdict.answer == "4"
    assert combined(rule("all"), {"a": RIGHT, "b": FORMAT}).status is Status.FORMAT
