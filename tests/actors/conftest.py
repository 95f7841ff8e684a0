"""Lets child processes import the functions of these tests."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def functions_importable(monkeypatch):
    """Children import `deadline_functions` by name, from the parent's sys.path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
