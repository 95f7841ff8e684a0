"""`run.log`: every message of a run with its time, the error that ended it, and no secret."""

import io

import pytest
from rich.console import Console

from orchestrator.errors import RunError
from orchestrator.evaluation.show import EvalProgress
from orchestrator.storage.run_log import logged_to
from orchestrator.terminal import RunProgress


@pytest.fixture
def shown():
    """A run's progress and the text that a person sees of it."""
    text = io.StringIO()
    return RunProgress("trial", total=30, done=0, console=Console(file=text, width=120)), text


def test_messages_and_steps_are_logged_with_their_time(tmp_path, shown):
    progress, text = shown
    with logged_to(tmp_path), progress:
        progress.say("[yellow]warning[/yellow] low on disk")
        progress.say_plainly("list[int] is not markup")
        for step in range(1, 4):
            progress.step(step, {"train/accuracy": 0.5})
    progress.say("after the log is closed")
    log = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split(" ", 3)[3] for line in log[:2]] == ["warning low on disk", "list[int] is not markup"]
    assert all(line.split(" ")[2] == "INFO" and len(line.split(" ")[1]) == 8 for line in log)
    assert [line.split("  ")[0].split(" ", 3)[3] for line in log[2:]] == [
        "step 1/30",
        "step 2/30",
        "step 3/30",
    ]
    assert "after the log is closed" in text.getvalue()
    assert "step 2/30" not in text.getvalue(), "without a terminal a person sees every tenth step"


def test_a_second_attempt_appends_and_the_error_that_ends_it_is_logged(tmp_path, shown):
    progress, _ = shown
    with logged_to(tmp_path):
        progress.say("first")
    with pytest.raises(RunError), logged_to(tmp_path):
        raise RunError("[rank0]: a rank died")
    first, last = (tmp_path / "run.log").read_text().splitlines()
    assert first.endswith("INFO first")
    assert last.endswith("ERROR RunError: [rank0]: a rank died")


def test_no_secret_is_written(tmp_path, shown, monkeypatch):
    monkeypatch.setenv("LASER_API_KEY", "sk-planted-1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-2")
    monkeypatch.setenv("HF_TOKEN", "hf_planted-3")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted/4+")
    progress, _ = shown
    with logged_to(tmp_path):
        progress.say("key sk-planted-1, password planted-2, token hf_planted-3")
        progress.say_plainly("postgresql://me:planted-5@host/db and https://planted-6:planted-7@host")
        progress.say("sqlite:///runs/mlflow.db?password=planted-8&x=1")
    with pytest.raises(RuntimeError), logged_to(tmp_path):
        raise RuntimeError("refused with planted/4+ and s3://id:planted-9@bucket")
    log = (tmp_path / "run.log").read_text()
    for secret in (
        "sk-planted-1",
        "planted-2",
        "planted-3",
        "planted/4+",
        "planted-5",
        "planted-7",
        "planted-8",
        "planted-9",
    ):
        assert secret not in log
    assert "postgresql://me:***@host/db" in log, "the rest of the line stays"


def test_a_log_that_cannot_be_written_does_not_disturb_the_run(tmp_path, shown):
    (tmp_path / "run.log").mkdir()
    progress, text = shown
    with logged_to(tmp_path):
        progress.say("still shown")
    assert "still shown" in text.getvalue()


def test_what_an_evaluation_says_is_logged_too(tmp_path):
    text = io.StringIO()
    progress = EvalProgress(Console(file=text, width=120))
    with logged_to(tmp_path), progress:
        progress.say("resuming: 3 samples [of 8] are drawn")
    assert "resuming: 3 samples [of 8] are drawn" in text.getvalue()
    (line,) = (tmp_path / "run.log").read_text().splitlines()
    assert line.endswith(" INFO resuming: 3 samples [of 8] are drawn")
