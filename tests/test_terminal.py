"""What a person reads while a run goes on and at its end."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import terminal as progress
from orchestrator.measures import Place, shown_in
from orchestrator.terminal import SHOWN, RunProgress, StepLine
from orchestrator.training.show import show_summary

FIGURES = {measure.key: 0.25 for measure in shown_in(Place.SUMMARY)}
SUMMARY = {
    "base": FIGURES,
    "trained": FIGURES | {"accuracy": 0.5, "auroc": None},
    "problems": 300,
    "samples_per_problem": 8,
    "steps": 200,
    "seconds": 301.4,
    "c_ref": -21.0,
}


@pytest.fixture
def console():
    return Console(width=120, record=True, force_terminal=False, file=open("/dev/null", "w"))


def test_without_a_terminal_a_line_every_ten_steps_and_for_the_first_and_last(console):
    shown = RunProgress("trial", total=23, done=4, console=console)
    with shown:
        for step in range(5, 24):
            shown.step(step, {"train/accuracy": 0.5, "time/step": 12.34})
    lines = console.export_text().splitlines()
    assert [line.split()[1] for line in lines] == ["5/23", "10/23", "20/23", "23/23"]
    assert lines[0].split("  ") == ["step 5/23", "accuracy 0.500", "step s 12.3", "ETA -"]


def test_broken_health_rules_are_named_in_panel_line_and_record():
    values = {"train/accuracy": 0.5, "health/entropy": 1.0, "health/score": 0.0}
    line = StepLine(1, 2, values, "-")
    assert str(line).endswith("ETA -  unhealthy: entropy has collapsed")
    assert str(StepLine.from_record(line.record())) == str(line)
    file = io.StringIO()
    with RunProgress("trial", 2, 0, Console(file=file, width=100, force_terminal=True)) as shown:
        shown.step(1, values)
    assert "unhealthy entropy has collapsed" in re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())


def test_the_summary_compares_base_and_trained_model(console):
    show_summary(SUMMARY, Path("runs/trial"), "sqlite:///runs/mlflow.db", console)
    text = console.export_text()
    assert "300 held-out problems x 8 samples, 200 steps, 5:01" in text
    (accuracy,) = [line for line in text.splitlines() if "accuracy" in line]
    assert [cell.strip() for cell in accuracy.strip("│").split("│")][1:] == ["0.250", "0.500", "+0.250"]
    assert "Maj@8" in text
    assert "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db" in text


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("http://host:5000", "curves    http://host:5000"),
        ("https://me:secret@host/ml", "curves    https://me:***@host/ml"),
        ("postgresql://me:secret@host/db", "mlflow ui --backend-store-uri 'postgresql://me:***@host/db'"),
    ],
)
def test_curves_are_where_the_server_is_and_a_password_is_not_printed(console, uri, line):
    show_summary(SUMMARY | {"base": None}, Path("runs/trial"), uri, console)
    text = console.export_text()
    assert line in text
    assert "secret" not in text


def test_the_advice_fits_the_run(console):
    show_summary(SUMMARY | {"c_ref": None}, Path("runs/plain"), "sqlite:///runs/mlflow.db", console)
    text = console.export_text(clear=True)
    assert "report runs/plain" in text
    assert "serve" not in text, "a run without self-reward has no score to serve"
    show_summary(SUMMARY, Path("runs/scored"), "sqlite:///runs/mlflow.db", console)
    text = console.export_text()
    assert "serve --model runs/scored" in text
    assert "experiments/" not in text, "recipes exist in a checkout only"


def test_commands_can_be_typed_without_activating_the_environment(tmp_path, monkeypatch):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "mlflow").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress.sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr(progress.shutil, "which", lambda name: None)
    assert progress.program("mlflow") == ".venv/bin/mlflow"
    assert progress.program("laser") == "laser"


STEP = StepLine(
    5,
    23,
    {"train/accuracy": 0.5, "self_reward/f1": float("nan"), "time/step": 12.34, "not/shown": 1.0},
    "1:02:03",
)


def test_a_step_as_text_and_as_a_record():
    assert str(STEP) == "step 5/23  accuracy 0.500  F1 -  step s 12.3  ETA 1:02:03"
    read = StepLine.from_record(STEP.record())
    assert (read.step, read.total, read.eta) == (5, 23, "1:02:03")
    assert str(read) == str(STEP)
    assert set(read.values) == {"train/accuracy", "self_reward/f1", "time/step"}, "those that are shown"
    assert read.values["time/step"] == 12.34, "not rounded"
    assert json.loads(STEP.record())["values"]["self_reward/f1"] is None, "NaN is not JSON"


def test_a_number_that_overflowed_is_shown_as_what_it_is():
    step = StepLine(1, 2, {"loss/total": float("nan"), "time/step": float("inf")}, "-")
    assert str(step) == "step 1/2  loss nan  step s inf  ETA -"
    assert json.loads(step.record(), parse_constant=pytest.fail)["values"] == {
        "loss/total": "nan", "time/step": "inf"
    }  # fmt: skip
    assert str(StepLine.from_record(step.record())) == str(step)


@pytest.mark.parametrize(
    "line",
    [
        "step 5 on test: accuracy 0.438  F1 0.246",
        str(STEP),
        "",
        '{"event": "evaluation"}',
        '{"event": "step", "step": 5}',
        STEP.record()[:-1],
    ],
)
def test_other_lines_are_no_records(line):
    assert StepLine.from_record(line) is None


def test_a_job_prints_each_step_as_a_record(monkeypatch):
    monkeypatch.setenv("LASER_STEP_RECORDS", "1")
    console = Console(width=120, force_terminal=False, file=io.StringIO())
    progress = RunProgress("trial", total=23, done=4, console=console)
    for step in (5, 6, 7):
        progress.step(step, dict.fromkeys(SHOWN, 0.123456789))
    lines = console.file.getvalue().splitlines()
    assert [StepLine.from_record(line).step for line in lines] == [5, 6, 7], (
        "a line each, wider than the console"
    )


@pytest.mark.parametrize(("items", "terminal"), [(10_000, True), (9_999, True), (10_000, False)])
def test_a_bar_shows_many_items_in_a_terminal_alone(items, terminal, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", stream)
    with progress.progress_bar("rendering prompts", items) as advance:
        advance(items - 1)
        advance(1)
    shown = items >= progress.BAR_FROM and terminal
    assert ("rendering prompts" in stream.getvalue()) == shown
    assert (f"{items}/{items}" in stream.getvalue()) == shown
