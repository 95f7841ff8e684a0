"""Damage to the small files of a run's and of a sweep's folder: each command says which file it is."""

import random
import re
import shutil
from pathlib import Path

import pytest

from orchestrator.cli import main

STORED = Path(__file__).parents[1] / "stored"
GARBAGE = (b"", b"\x00" * 40, b"\xff\xfe\xc3", b"[3]", b'{"a": 1}')


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A finished run and a sweep; their settings name these paths."""
    shutil.copytree(STORED, tmp_path / "tests" / "stored", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return Path("tests/stored")


def damaged(file: Path, rng: random.Random):
    """Contents of the file, each with another fault."""
    whole = file.read_bytes()
    yield from GARBAGE
    for _ in range(2):
        yield whole[: rng.randrange(len(whole))]
    for _ in range(2):
        position = rng.randrange(len(whole))
        yield whole[:position] + rng.randbytes(8) + whole[position + 8 :]


def accept_or_name(capsys, file: Path, content: bytes, *command: str):
    """Run a command in this process: it works, or its one message names the file."""
    file.write_bytes(content)
    status = main(command)
    message = capsys.readouterr().err
    if status != 0:
        assert status in (1, 2)
        assert re.match(rf"laser {command[0]}: ", message)
        assert file.name in message, (content, message)
    return status


@pytest.mark.parametrize(
    "name", ["config.yaml", "summary.json", "metrics.jsonl", "checkpoints/step-000002/state.json"]
)
def test_a_finished_run_is_shown_or_its_damaged_file_named(stored, capsys, name):
    file = stored / "run" / name
    whole = file.read_bytes()
    (stored / "run" / ".mlflow-sent").write_text("1000")  # nothing is left to send
    statuses = set()
    for content in damaged(file, random.Random(name)):
        statuses.add(accept_or_name(capsys, file, content, "train", "tests/stored/run.yaml"))
        if name in ("config.yaml", "metrics.jsonl"):
            accept_or_name(capsys, file, content, "report", "tests/stored/run", "-o", "page.html")
    assert statuses & {1, 2}
    file.write_bytes(whole)
    assert main(["train", "tests/stored/run.yaml"]) == 0


@pytest.mark.parametrize("name", ["results.json", "trials/alpha-1_seed-0/config.yaml"])
def test_a_sweep_is_shown_or_its_damaged_file_named(stored, capsys, name):
    file = stored / "sweep" / name
    statuses = {
        accept_or_name(capsys, file, content, "report", "tests/stored/sweep", "-o", "page.html")
        for content in damaged(file, random.Random(name))
    }
    assert 2 in statuses


def test_a_damaged_branch_is_named(stored, capsys):
    file = stored / "sweep" / "trials" / "alpha-1_seed-0" / "branch.json"
    for content in (*GARBAGE, b'{"trunk": 1, "step": 2}', b'{"trunk": "a", "step": "2"}'):
        assert accept_or_name(capsys, file, content, "report", "tests/stored/sweep", "-o", "page.html") == 2


def test_a_damaged_card_is_named(stored, capsys):
    file = stored / "run" / "export" / "self_reward.json"
    command = ("eval", "--model", "tests/stored/run", "--data", "missing.jsonl", "-o", "results")
    for content in (*GARBAGE, b"{" + file.read_bytes()):
        assert accept_or_name(capsys, file, content, *command) == 2
