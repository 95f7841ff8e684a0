"""The settings of verifiers: what is refused, and that docs/tasks.md names them all."""

import re
from pathlib import Path

import pytest

from orchestrator.config.schema import ConfigError, validate
from orchestrator.config.verification import VerificationConfig
from orchestrator.config.verifiers import BY_NAME, read_verifier, settings_of_text, verifier_text

PAGE = Path(__file__).parents[2] / "docs/tasks.md"


def test_the_page_names_every_verifier_and_setting():
    page = PAGE.read_text()
    sections = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL))
    for name, schema in BY_NAME.items():
        assert f"| `{name}` |" in page
        own = [key for key in schema.model_fields if key not in ("name", "timeout_s")]
        section = next((text for title, text in sections.items() if name in title.split()), "")
        assert [key for key in own if f"`{key}`" not in section] == [], name


@pytest.mark.parametrize(
    ("choice", "what"),
    [
        ("nmber", "no verifier is named 'nmber' (nearest: number)"),
        ({"tolerance": 1}, "has no name"),
        ({"name": "number", "tolerence": 1}, "tolerence: unknown setting; nearest: tolerance"),
        ({"name": "number", "tolerance": -1}, "tolerance"),
        ({"name": "pattern"}, "pattern: Field required"),
        ({"name": "judge", "base_url": "judge:8000", "model": "m"}, "base_url"),
        ({"name": "judge", "base_url": "http://me:pass@judge/v1", "model": "m"}, "base_url"),
        (
            {"name": "judge", "base_url": "http://judge/v1", "model": "m", "key_variable": "JUDGE"},
            "key_variable: 'JUDGE' needs KEY, TOKEN, PASSWORD or SECRET in its name",
        ),
        ({"name": "weighted", "parts": {}}, "parts"),
        ({"name": "weighted", "parts": {"a": {"verifier": "maths"}}}, "no verifier is named 'maths'"),
        ({"name": "mine:check", "bonus": 1}, "bonus: unknown setting; what a verifier"),
        (3, "must be a verifier's name, or a mapping with it, got 3"),
    ],
)
def test_what_is_refused_before_anything_starts(choice, what):
    with pytest.raises(ConfigError, match=re.escape(what)):
        validate({"verifier": choice}, VerificationConfig, "test")
    with pytest.raises(ConfigError, match=re.escape(what)):
        validate({"named": {"mine": choice}}, VerificationConfig, "test")


def test_one_text_for_one_meaning():
    assert verifier_text("math") == verifier_text({"name": "math"})
    assert verifier_text("actors.verification:verify_math") == verifier_text("math_verify_plain")
    text = verifier_text({"name": "number", "tolerance": 0.1})
    assert text == verifier_text({"tolerance": 0.1, "absolute": 0.0, "name": "number"})
    assert settings_of_text(text) == read_verifier({"name": "number", "tolerance": 0.1}, "here")
