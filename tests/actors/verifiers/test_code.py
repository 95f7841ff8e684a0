"""The verifier `code`: right programs, wrong ones, and ones that break their limits."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from actors.verification import VerificationWorker
from actors.verifiers import sandbox
from actors.verifiers.code import UnreadableTests, program_of, read_tests
from orchestrator.config.verifiers import CodeSettings, verifier_text
from orchestrator.errors import ConfigError
from orchestrator.messages.verdicts import Status
from tests.actors.verifiers.made import about, verdict_of

REVERSE = json.dumps({"inputs": ["abc\n", "x y\n"], "outputs": ["cba\n", "y x"]})
FAST = {"name": "code", "cpu_s": 1.0, "memory_mib": 256, "processes": 8}


def programs_left():
    """Processes of programs that still run on this machine."""
    left = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"main.py\0" in (folder / "cmdline").read_bytes():
                left.append(folder.name)
    return left


def test_limits_hold_and_nothing_is_left():
    """One worker meets every hostile program, and checks a right one after each."""
    hostile = {
        "while True: pass": "CPU time",
        "import os\nwhile True: os.fork()": "8 processes",
        "while True: print('x' * 10**7)": "of output",
        "x = bytearray(4 * 2**30)": "256 MiB of memory",
        "import ctypes\nctypes.string_at(0)": "SIGSEGV",
        "import socket\nsocket.socket()": "opened a socket",
        "f = open('a', 'w')\nwhile True: f.write('x' * 10**6)": "exit status 1: OSError",
        "open('/usr/x', 'w')": "Read-only file system",
        "import os, time\nos.fork() or os.setsid() or time.sleep(600)\nraise SystemExit(5)": "status 5",
    }
    worker = VerificationWorker(verifier_text(FAST))
    try:
        (right,) = worker.verify(["print(input()[::-1])"], [True], about(REVERSE))
        assert (right.status, right.reward) == (Status.CORRECT, 1), right.detail
        verdicts = worker.verify(list(hostile), [True] * len(hostile), about(REVERSE))
        for verdict, what in zip(verdicts, hostile.values(), strict=True):
            assert verdict.status is Status.WRONG, verdict.detail
            assert what in verdict.detail
        assert worker._children.start(worker_settings()).restarts == 0, "the child outlived them all"
    finally:
        worker.close()
    deadline = time.monotonic() + 10
    while programs_left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert programs_left() == []


def worker_settings():
    return CodeSettings.model_validate(FAST)


def test_a_program_that_waits_is_not_judged(monkeypatch):
    monkeypatch.setattr("actors.verifiers.sandbox.wall_seconds", lambda limits: 0.5)
    monkeypatch.setattr("actors.verifiers.code.wall_seconds", lambda limits: 0.5)
    verdict = verdict_of(FAST, "import time\ntime.sleep(60)", REVERSE)
    assert (verdict.status, verdict.reward) == (Status.TIMEOUT, None)


def test_the_deadline_of_a_check_ends_its_program_too():
    worker = VerificationWorker(verifier_text({**FAST, "timeout_s": 1.0, "cpu_s": 30}))
    try:
        (verdict,) = worker.verify(["while True: pass"], [True], about(REVERSE))
        assert verdict.status is Status.TIMEOUT
    finally:
        worker.close()
    time.sleep(0.5)
    assert programs_left() == []


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "print('1 of 1 passed')\nquit()",
        "import os\nos.execvp('true', ['true'])",
    ],
)
def test_a_program_that_ends_before_its_tests_does_not_pass(program):
    verdict = verdict_of(FAST, program, about('["assert False"]'))
    assert verdict.reward == 0
    assert "before its tests" in verdict.detail


def test_assert_tests_in_part_and_their_setup():
    response = "First\n```python\nbroken(\n```\nbetter\n```python\ndef f(x): return math.floor(x) + 1\n```"
    tests = ["assert f(1.5) == 2", "assert f(0) == 0", "assert f(2) == 3"]
    problem = about(None, test_list=tests, imports=["import math"])
    settings = {**FAST, "tests_field": "test_list", "setup_field": "imports"}
    assert verdict_of(settings, response, problem).reward == 0
    graded = verdict_of({**settings, "graded": True}, response, problem)
    assert graded.reward == pytest.approx(2 / 3)
    assert graded.status is Status.CORRECT
    assert "test 2: exit status 1: AssertionError" in graded.detail


def test_call_tests():
    tests = json.dumps({"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [3, [1, 2]]})
    assert verdict_of(FAST, "def add(a, b): return a + b", tests).reward == 1
    method = "class Solution:\n    def add(self, a, b): return a + b"
    assert verdict_of(FAST, method, tests).reward == 1
    assert verdict_of(FAST, "def add(a, b): return a", tests).reward == 0


def test_a_program_sees_neither_the_environment_nor_the_files_of_the_worker(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    (tmp_path / "data").write_text("private")
    program = f"import os\nprint(os.getenv('SECRET_KEY'), os.path.exists({str(tmp_path)!r}), os.getpid())"
    if sandbox.working_mode() == "namespaces":
        run = sandbox.run_program_with_limits(worker_settings(), {"main.py": program})
        assert run.stdout == "None False 2\n"


def test_another_user_id_holds_programs_too(monkeypatch):
    """The way without namespaces; the system's Python can be read by every user."""
    if os.getuid() != 0 or not Path(f"/usr/bin/python3.{sys.version_info.minor}").exists():
        pytest.skip("needs root, and a Python that other users can read")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert sandbox._fault_of("user") is None
    limits = worker_settings()
    bomb = "import os\nif os.fork() == 0:\n    import time\n    time.sleep(600)\nos.setsid()"
    run = sandbox.run_program_with_limits(limits, {"main.py": bomb}, mode="user")
    assert "Operation not permitted" in run.stderr, "it stays in its process group"
    assert programs_left() == []


def test_without_a_way_to_hold_programs_the_verifier_is_refused(monkeypatch):
    sandbox.working_mode.cache_clear()
    monkeypatch.setattr(sandbox, "_fault_of", lambda mode: "no such thing here")
    try:
        with pytest.raises(ConfigError, match=r"namespaces: no such thing here; user: .*CAP_SETUID"):
            verdict_of({**FAST, "cpu_s": 1.5}, "x", REVERSE)
    finally:
        sandbox.working_mode.cache_clear()


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```py\na\n```\n```\nb\n```", "b\n"),
        ("```json\n{}\n```\n```python\na", "a"),
        ("print(1)", "print(1)"),
        ("```json\n{}\n```", None),
        ("", None),
    ],
)
def test_which_block_is_the_program(response, program):
    assert program_of(response) == program


def test_a_response_without_a_program_and_a_row_without_tests():
    assert verdict_of(FAST, "", REVERSE).status is Status.NO_ANSWER
    assert verdict_of(FAST, "print(1)", None).status is Status.ERROR
    for tests in (
        "",
        [],
        {"inputs": [1], "outputs": []},
        [1],
        7,
        {"fn_name": "a b", "inputs": [1], "outputs": [1]},
    ):
        with pytest.raises(UnreadableTests):
            read_tests(tests)
    assert [test.stdin for test in read_tests([{"input": ["1", "2"], "output": "3"}])] == ["1\n2"]


def test_a_user_without_rights_holds_programs_in_a_namespace_of_users(monkeypatch):
    """The launcher as an ordinary user runs it, with a Python that every user can read."""
    python = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    if os.getuid() != 0 or not python.exists():
        pytest.skip("needs root to become another user, and a Python that it can read")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o777)
        launcher = folder / "launcher.py"
        shutil.copy(sandbox.LAUNCHER, launcher)
        launcher.chmod(0o644)
        monkeypatch.setattr(sandbox, "LAUNCHER", launcher)
        monkeypatch.setattr(sys, "executable", str(python))
        monkeypatch.setattr(sys, "base_prefix", "/usr")
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        run = partial(subprocess.Popen, user=1234, group=1234, extra_groups=[])
        monkeypatch.setattr(sandbox.subprocess, "Popen", run)
        monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: _owned_folder(folder))
        assert sandbox._fault_of("namespaces") is None
        program = "import os\nprint(os.getuid(), os.listdir('/work'))\nopen('/usr/x', 'w')"
        found = sandbox.run_program_with_limits(worker_settings(), {"main.py": program}, mode="namespaces")
        assert found.stdout == "0 ['main.py']\n", "root of its own namespace alone"
        assert "Read-only file system" in found.stderr
    finally:
        shutil.rmtree(folder)


def _owned_folder(parent):
    folder = parent / str(time.monotonic_ns())
    folder.mkdir()
    os.chown(folder, 1234, 1234)
    return str(folder)
