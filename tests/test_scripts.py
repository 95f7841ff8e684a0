"""`make audit`, `make licences` and `make sbom`."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_every_installed_package_is_listed_once_with_a_licence(tmp_path):
    list_file = tmp_path / "licences.txt"
    subprocess.run([sys.executable, SCRIPTS / "licences.py", list_file], check=True, timeout=60)
    lines = list_file.read_text().splitlines()
    rows = {line.split()[0].lower(): line.split(maxsplit=2) for line in lines}
    assert len(rows) == len(lines)
    assert rows.keys() >= {"deepspeed", "mlflow", "pydantic", "ray", "torch", "transformers"}
    assert rows["mlflow"][1] == importlib.metadata.version("mlflow")
    assert "Apache" in rows["mlflow"][2]
    assert all(len(row) == 3 for row in rows.values())


@pytest.mark.parametrize(
    ("tool", "status", "said"),
    [
        ("echo none found; exit 0", 0, "none found"),
        ("echo jinja2 3.1.0 PYSEC-1; exit 1", 1, "PYSEC-1"),
        ("echo 'ERROR:pip_audit._cli:jinja2: not found on PyPI' >&2; exit 1", 2, "Nothing was audited"),
        ("echo Traceback >&2; echo 'ProxyError: no network' >&2; exit 1", 2, "needs a network"),
    ],
)
def test_no_answer_is_no_all_clear(tmp_path, tool, status, said):
    """The tool is a fake: what it says without a network, and with findings, cannot be had at will."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "pip-audit"
    program.write_text(f"#!/bin/sh\n{tool}\n")
    program.chmod(0o755)
    ended = subprocess.run([SCRIPTS / "audit", tmp_path], capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    assert said in ended.stdout + ended.stderr


def test_without_a_network_the_audit_says_so(tmp_path):
    environment = {**os.environ, "PYTHON": "false"}  # as if pip had failed, in no time
    ended = subprocess.run(
        [SCRIPTS / "audit", tmp_path / "tools"], capture_output=True, text=True, timeout=120, env=environment
    )
    assert ended.returncode == 2
    assert "pip-audit could not be installed" in ended.stderr


@pytest.mark.long
def test_the_bill_of_materials_names_every_installed_package(tmp_path):
    """Where cyclonedx-bom cannot be installed, the command must say so."""
    bill = tmp_path / "sbom.json"
    environment = Path(sys.executable).parents[1]
    ended = subprocess.run([SCRIPTS / "sbom", environment, bill], capture_output=True, text=True, timeout=300)
    if ended.returncode == 2:
        assert "cyclonedx-bom could not be installed" in ended.stderr
        return
    found = json.loads(bill.read_text())
    assert found["bomFormat"] == "CycloneDX"
    assert found["metadata"]["component"]["name"] == "laser-orchestrator"
    names = {component["name"].lower(): component for component in found["components"]}
    assert names.keys() >= {"deepspeed", "mlflow", "pydantic", "ray", "torch", "transformers"}
    assert names["mlflow"]["version"] == importlib.metadata.version("mlflow")
    assert names["mlflow"]["licenses"]


@pytest.mark.parametrize(
    ("environment", "said"), [("nowhere", "is no environment"), ("made", "could not be installed")]
)
def test_without_environment_or_network_no_bill_is_written(tmp_path, environment, said):
    (tmp_path / "made" / "bin").mkdir(parents=True)
    (tmp_path / "made" / "bin" / "python").symlink_to(sys.executable)
    bill = tmp_path / "sbom.json"
    ended = subprocess.run(
        [SCRIPTS / "sbom", tmp_path / environment, bill],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHON": "false"},
    )
    assert ended.returncode == 2
    assert said in ended.stderr
    assert not bill.exists()
