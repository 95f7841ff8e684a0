"""A run that resumes keeps its verifier, unless the new settings name one."""

import pytest
import yaml

from orchestrator.config.resume import dump_named, names_verifier, with_kept_verifier
from orchestrator.config.schema import changed_settings, dump_config, validate
from orchestrator.config.training import RunConfig
from tests.settings import configure

FORMER = "actors.verification:verify_math"


def config(**verification):
    return configure(**({"verification": verification} if verification else {}))


def saved(verifier=FORMER):
    return dump_config(config(verifier=verifier))


def test_a_new_run_has_the_default():
    assert with_kept_verifier(config(), None).verification.verifier == "math"


def test_a_run_that_names_none_keeps_its_own(tmp_path):
    kept = with_kept_verifier(config(timeout_s=3.0), saved())
    assert kept.verification.verifier == FORMER
    assert kept.verification.timeout_s == 3.0
    (tmp_path / "config.yaml").write_text(saved())
    assert set(changed_settings(tmp_path / "config.yaml", kept)) == {"verification.timeout_s"}


def test_a_verifier_with_settings_is_kept_too():
    graded = {"name": "number", "tolerance": 0.1}
    assert with_kept_verifier(config(), saved(graded)).verification.verifier == graded


@pytest.mark.parametrize("verifier", ["math", "mine:check"])
def test_a_verifier_that_is_named_is_not_replaced(verifier):
    assert with_kept_verifier(config(verifier=verifier), saved()).verification.verifier == verifier


@pytest.mark.parametrize("text", ["", "[]", "verification: 3", "verification: {}", "run: {}"])
def test_settings_without_a_verifier_change_nothing(text):
    assert with_kept_verifier(config(), text) == config()


def test_a_submitted_configuration_names_only_the_verifier_that_the_user_named():
    sent = yaml.safe_load(dump_named(config(timeout_s=3.0)))
    assert "verifier" not in sent["verification"]
    assert not names_verifier(validate(sent, RunConfig, "sent"))
    sent = yaml.safe_load(dump_named(config(verifier="math")))
    assert names_verifier(validate(sent, RunConfig, "sent"))
