"""A user's own verifiers: which arguments they take, with settings, and what is refused."""

import pytest

from actors.verifiers.loading import loaded_verifier
from orchestrator.config.verifiers import needs_reference, row_verifier, settings_of_text, verifier_text
from orchestrator.errors import ConfigError, DataError
from orchestrator.messages.verdicts import Status, Verdict
from tests.actors.verifiers.made import about, verdict_of


def test_the_second_parameter_says_what_a_verifier_takes():
    assert verdict_of("own_verifiers:whole", "x", about(None, secret="x")).status is Status.CORRECT
    assert verdict_of("own_verifiers:by_text", "x", "x").status is Status.CORRECT
    assert verdict_of("own_verifiers:by_name", "x", "x").status is Status.CORRECT
    missing = verdict_of("own_verifiers:by_text", "x", None)
    assert (missing.status, missing.reward) == (Status.ERROR, None)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("unclear", "is 'thing' the problem or the reference"),
        ("contradicting", "'problem: str' may mean either"),
        ("numbers", "neither a Problem nor a str"),
        ("three", "does not take two arguments"),
        ("Prefix", "is a class"),
        ("nothing", "has no such name"),
    ],
)
def test_what_is_refused(name, what):
    with pytest.raises(ConfigError, match=what):
        loaded_verifier(verifier_text(f"own_verifiers:{name}"))


def test_settings_make_a_verifier():
    choice = {"name": "own_verifiers:Prefix", "settings": {"text": "a", "bonus": 0.25}}
    assert verdict_of(choice, "abc", None).reward == 0.25
    loaded = loaded_verifier(verifier_text(choice))
    assert loaded.votes
    assert loaded.same("A", "a")
    with pytest.raises(ConfigError, match="colour"):
        loaded_verifier(verifier_text({"name": "own_verifiers:Prefix", "settings": {"colour": 1}}))


def test_which_verifiers_vote():
    names = ("math", "number", "choice", "text", "json")
    assert all(loaded_verifier(verifier_text(name)).votes for name in names)
    assert not loaded_verifier(verifier_text("token_f1")).votes
    assert not loaded_verifier(verifier_text({"name": "pattern", "pattern": "x"})).votes


def test_a_row_chooses_only_what_the_configuration_allows():
    named = {"mine": "own_verifiers:whole"}
    assert settings_of_text(row_verifier("mine", named, "here")).name == "own_verifiers:whole"
    assert settings_of_text(row_verifier('{"name": "number", "tolerance": 0.1}', {}, "here")).tolerance == 0.1
    for value in ("os:system", {"name": "judge", "base_url": "http://x", "model": "m"}):
        with pytest.raises(DataError, match="may not choose"):
            row_verifier(value, named, "here")
    hidden = {"name": "weighted", "parts": {"a": {"verifier": "os:system"}}}
    with pytest.raises(DataError, match="may not choose 'os:system'"):
        row_verifier(hidden, named, "here")
    for value, what in ((7, "is a int"), ("maths", "no verifier is named"), ("{", "is not JSON")):
        with pytest.raises(DataError, match=what):
            row_verifier(value, named, "x.jsonl, line 3")


def test_which_verifiers_need_a_reference():
    assert needs_reference(verifier_text("math"))
    assert not needs_reference(verifier_text("code"))
    parts = {"a": {"verifier": {"name": "pattern", "pattern": "x"}}, "b": {"verifier": "number"}}
    assert needs_reference(verifier_text({"name": "weighted", "parts": parts}))


@pytest.mark.parametrize(
    "fields",
    [
        {"reward": 1.5},
        {"reward": -0.1},
        {"reward": float("nan")},
        {"parts": {"a": float("inf")}},
    ],
)
def test_a_verdict_refuses_numbers_that_are_no_reward(fields):
    with pytest.raises(ValueError, match=r"between 0 and 1|finite"):
        Verdict(Status.WRONG, **fields)
    with pytest.raises(ValueError, match="has no reward"):
        Verdict(Status.TIMEOUT, reward=0.0)


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        (Verdict(Status.WRONG, reward=0.51), Status.CORRECT),
        (Verdict(Status.CORRECT, reward=0.5), Status.WRONG),
        (Verdict(Status.CORRECT), Status.CORRECT),
        (Verdict(Status.FORMAT, reward=0.1), Status.FORMAT),
        (Verdict(Status.NO_ANSWER), Status.NO_ANSWER),
        (Verdict(Status.ERROR), Status.ERROR),
    ],
)
def test_the_reward_decides_what_is_correct(verdict, status):
    assert verdict.settled(0.5).status is status
