"""How long requests of the MLflow client may take, and who decides it."""

import contextlib
import os

import pytest

from orchestrator.tracking.client_environment import (
    PATIENT,
    QUICK,
    RETRIES,
    TIMEOUT,
    patient_requests,
    set_client_defaults,
)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in (RETRIES, TIMEOUT):
        monkeypatch.setenv(name, "")  # so that the value is restored after the test
        monkeypatch.delenv(name)


def settings():
    return {name: os.environ.get(name) for name in (RETRIES, TIMEOUT)}


def test_requests_are_patient_only_within_the_block():
    set_client_defaults()
    assert settings() == QUICK
    with contextlib.suppress(KeyboardInterrupt), patient_requests():
        assert settings() == PATIENT
        raise KeyboardInterrupt
    assert settings() == QUICK


def test_a_setting_of_the_user_stays(monkeypatch):
    monkeypatch.setenv(TIMEOUT, "7")
    set_client_defaults()
    with patient_requests():
        assert settings() == {RETRIES: PATIENT[RETRIES], TIMEOUT: "7"}
    assert settings() == {RETRIES: QUICK[RETRIES], TIMEOUT: "7"}
