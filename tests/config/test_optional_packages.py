"""Packages are hidden while a library is imported, and only then."""

import importlib
import sys

import pytest

from orchestrator.config.optional_packages import without_packages


def test_a_package_is_missing_only_within_the_context(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with without_packages("colorsys"):
        assert importlib.util.find_spec("colorsys") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("colorsys")
    assert importlib.import_module("colorsys")


def test_a_package_that_is_in_use_stays(monkeypatch):
    json = importlib.import_module("json")
    with without_packages("json"):
        assert importlib.import_module("json") is json
    assert sys.modules["json"] is json


def test_a_failed_import_leaves_nothing_hidden(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with pytest.raises(ModuleNotFoundError), without_packages("colorsys"):
        importlib.import_module("colorsys")
    assert "colorsys" not in sys.modules
