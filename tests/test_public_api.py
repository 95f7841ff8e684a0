"""What `from orchestrator import ...` offers, as the module's docstring shows it."""

import importlib
import subprocess
import sys

import pytest

import orchestrator


def test_every_name_is_there_and_is_the_one_of_its_module():
    for name in orchestrator.__all__:
        assert callable(getattr(orchestrator, name)), name
    assert orchestrator.train is importlib.import_module("orchestrator.training.run").train
    assert orchestrator.report is importlib.import_module("dashboards.report").write_report
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        orchestrator.nothing  # noqa: B018
    # A submodule of the same name would take the name's place as soon as anything imports it.
    for name in orchestrator.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"orchestrator.{name}")


def test_a_configuration_is_read_and_changed_in_a_few_lines_without_torch():
    code = """
from orchestrator import load_config, with_settings
config = with_settings(load_config("experiments/quickstart.yaml"), {"run.name": "mine", "loss.alpha": 1.0})
import sys
print(config.run.name, config.loss.alpha, "torch" in sys.modules, "ray" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["mine", "1.0", "False", "False"]
