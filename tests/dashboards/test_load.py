"""What the report reads from the folders of runs and sweeps."""

import json
import math
from dataclasses import fields

import pytest

from dashboards.report import write_report
from dashboards.report.load import join, load_runs
from orchestrator.cli import main
from orchestrator.errors import ConfigError, RunError
from orchestrator.evaluation.figures import EvalResults, Figures
from tests.dashboards.folders import write_journal


def test_a_branched_trial_has_its_trunks_curve_up_to_the_branch(tmp_path):
    trunk = {
        step: {"train/accuracy": step / 100} for step in (1, 2, 3, 4)
    }  # the trunk went on beyond the branch
    write_journal(tmp_path / "trunks/t0", "t0", trunk, {0: {"accuracy": 0.25}, 4: {"accuracy": 0.9}})
    trial = tmp_path / "trials/a"
    write_journal(
        trial,
        "a",
        {step: {"train/accuracy": 0.5, "self_reward/f1": 0.7} for step in (3, 4)},
        {4: {"accuracy": 0.5}},
    )
    (trial / "branch.json").write_text('{"trunk": "../../trunks/t0", "step": 2, "trunk_run_id": "x"}')
    run = load_runs([trial]).runs[0]
    assert run.training["train/accuracy"] == {1: 0.01, 2: 0.02, 3: 0.5, 4: 0.5}
    assert run.training["self_reward/f1"] == {3: 0.7, 4: 0.7}
    assert run.evaluations["accuracy"] == {0: 0.25, 4: 0.5}
    assert (run.branch, run.trunk, run.base, run.evaluation) == (
        2,
        tmp_path / "trunks/t0",
        {"accuracy": 0.25},
        {"accuracy": 0.5},
    )


def test_at_the_branch_the_trials_own_value_counts():
    assert join({"a": {1: 0.1, 2: 0.2}}, {"a": {2: 0.7}}, 2) == {"a": {1: 0.1, 2: 0.7}}


def test_a_trial_whose_trunk_is_gone_is_shown_from_the_branch_on_and_noted(run_folder):
    (run_folder / "branch.json").write_text('{"trunk": "../gone", "step": 1, "trunk_run_id": "x"}')
    found = load_runs([run_folder])
    assert found.runs[0].training["train/accuracy"] == {1: 0.25, 2: 0.5}
    assert found.notes == ["plain: its trunk ../gone is not there, so its curves begin after step 1."]


def test_a_damaged_branch_file_is_refused_with_what_to_do(run_folder):
    (run_folder / "branch.json").write_text('{"trunk": "../t0", "st')
    with pytest.raises(ConfigError, match=r"branch\.json: is damaged .* Restore it, or delete it"):
        load_runs([run_folder])


def test_a_last_line_that_a_kill_cut_off_is_left_out_but_no_other(run_folder):
    journal = run_folder / "metrics.jsonl"
    journal.write_text(journal.read_text() + '{"event":"step","step":3,"val')
    assert load_runs([run_folder]).runs[0].step == 2
    journal.write_text(journal.read_text() + "\n{}\n")
    with pytest.raises(RunError, match=r"metrics.jsonl: line 7 is no event"):
        load_runs([run_folder])


@pytest.mark.parametrize(
    ("status", "shown"),
    [("RUNNING", "running"), ("FAILED", "failed"), ("FINISHED", "finished"), (None, "running")],
)
def test_the_state_of_a_run_is_that_of_its_last_status(tmp_path, status, shown):
    write_journal(tmp_path, "r", {1: {"train/accuracy": 0.1}}, status=status)
    assert load_runs([tmp_path]).runs[0].status == shown


def test_what_is_not_finite_is_no_point_of_a_curve(tmp_path):
    largest = 1.7976931348623157e308  # what an earlier version wrote for infinity
    write_journal(
        tmp_path,
        "r",
        {
            1: {"loss/total": 0.5},
            2: {"loss/total": math.nan},
            3: {"loss/total": largest},
            4: {"loss/total": 0.25},
            5: {"loss/total": math.inf},
        },
    )
    assert load_runs([tmp_path]).runs[0].training["loss/total"] == {1: 0.5, 4: 0.25}


def test_a_figure_that_the_newest_evaluation_leaves_undefined_is_not_taken_from_an_older_one(tmp_path):
    write_journal(tmp_path, "r", {}, {0: {"accuracy": 0.5, "auroc": 0.7}, 5: {"accuracy": 1.0}})
    assert load_runs([tmp_path]).runs[0].evaluation == {"accuracy": 1.0}


def test_a_sweep_is_read_with_trials_in_every_state(sweep_folder):
    found = load_runs([sweep_folder])
    by_status = {run.status: run for run in found.runs}
    assert set(by_status) == {"finished", "failed", "pruned", "running", "pending"}
    assert by_status["pending"].folder is None
    assert by_status["pending"].settings == {"run.seed": 1, "loss.beta_v": 0.2, "loss.alpha": 1.0}
    assert by_status["failed"].error == "RunError: a learner rank died 3 times; see worker-<7>.err"
    assert by_status["failed"].evaluation == {}  # its trunk's evaluation of the base model is not its own
    assert min(by_status["pruned"].training["train/accuracy"]) == 1
    assert max(by_status["pruned"].training["train/accuracy"]) == 45


def test_a_folder_named_twice_is_one_run(run_folder):
    assert len(load_runs([run_folder, run_folder / "." / ""]).runs) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no run and no sweep"),
        (lambda path: path.write_text(""), "is not a folder"),
    ],
)
def test_another_folder_is_refused_with_what_is_expected(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(ConfigError, match=rf"/x: {message}\. .*metrics\.jsonl.*results\.json"):
        write_report([tmp_path / "x"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_folder_of_an_evaluation_is_refused_with_what_to_give_instead(tmp_path, capsys):
    folder = tmp_path / "evaluated"
    folder.mkdir()
    figures = Figures(**{field.name: 0.5 for field in fields(Figures)})
    results = EvalResults(folder, "runs/quickstart step-000100", None, [], figures, 0)
    (folder / "results.json").write_text(json.dumps(results.tree()))
    assert main(["report", str(folder), "-o", str(tmp_path / "report.html")]) == 2
    message = capsys.readouterr().err
    assert f"{folder}: is the folder of an evaluation (laser eval) of runs/quickstart step-000100" in message
    assert "Name the folder of the run or sweep instead" in message
    assert not (tmp_path / "report.html").exists()


def test_no_folder_at_all_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run is given"):
        write_report([], tmp_path / "report.html")
