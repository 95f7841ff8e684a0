"""Lets this process and its children import the verifiers of these tests."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def verifiers_importable(monkeypatch):
    """Children import `own_verifiers` by name, from the parent's sys.path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
