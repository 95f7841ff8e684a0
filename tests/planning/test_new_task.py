"""`laser new`: the example is read, its verifier judges, and its own test passes."""

import subprocess
import sys

import pytest

from orchestrator.cli import main
from orchestrator.config.training import load_config
from orchestrator.data.problems import ProblemSource
from orchestrator.training.preparation import prepare


@pytest.fixture
def example(tmp_path, monkeypatch):
    assert main(["new", str(tmp_path / "mine")]) == 0
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.syspath_prepend(tmp_path / "mine")
    yield tmp_path / "mine"
    sys.modules.pop("verifier", None)


def test_the_recipe_fits_data_and_model(example):
    config = load_config("recipe.yaml")
    prepared = prepare(config)
    assert (len(prepared.train), len(prepared.eval[0].prompts), prepared.eval_name) == (400, 40, "test")
    ids = [
        {problem.text for problem in ProblemSource(source)}
        for source in (*config.data.train_sources(), *config.data.eval_sources())
    ]
    assert not ids[0] & ids[1]


def test_its_verifier_gives_graded_rewards_on_its_own_problems(example, capsys):
    arguments = ["--responses", "responses.jsonl", "--verifier", "verifier:check", "-o", "verdicts.jsonl"]
    assert main(["verify", "test.jsonl", *arguments]) == 0
    assert "no_answer" in capsys.readouterr().out


def test_its_own_test_passes(example):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=example, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.jsonl").write_text("")
    assert main(["new", str(tmp_path / "mine")]) == 2
    assert "exists already" in capsys.readouterr().err
