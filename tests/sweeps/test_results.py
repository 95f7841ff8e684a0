"""A sweep's ledger: its runs after a kill, the best point, and the training steps that trunks saved."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest

from orchestrator.errors import ConfigError
from orchestrator.storage.journal import Journal
from orchestrator.sweeps.plan import Member
from orchestrator.sweeps.results import Ledger, State


def member(
    name: str, point: dict, seed: int = 0, steps: int = 10, trunk: str | None = None, is_trunk: bool = False
) -> Member:
    return Member(name, point, seed, SimpleNamespace(run=SimpleNamespace(steps=steps)), trunk, is_trunk)


@pytest.fixture
def ledger(tmp_path):
    def make(metric: str = "(accuracy + f1) / 2") -> Ledger:
        return Ledger(tmp_path, "sweep", ["loss.alpha"], metric, "test")

    return make


def finish(ledger: Ledger, name: str, alpha: float, seed: int, accuracy: float, f1: float = 1.0) -> None:
    trial = ledger.add(member(name, {"loss.alpha": alpha}, seed))
    ledger.evaluated(trial, 10, {"accuracy": accuracy, "f1": f1})
    trial.status = State.FINISHED


def test_the_best_point_is_the_best_mean_over_seeds_and_a_lucky_single_seed_is_not_it(ledger):
    book = ledger()
    finish(book, "a0", 0.1, 0, 0.50)
    finish(book, "a1", 0.1, 1, 0.70)
    finish(book, "b0", 1.0, 0, 0.62)
    finish(book, "b1", 1.0, 1, 0.64)
    finish(book, "c0", 2.0, 0, 0.99)  # its other seed is still to come
    best = book.best()
    assert best.point == {"loss.alpha": 1.0}
    assert best.objective == pytest.approx((0.81 + 0.82) / 2)
    assert (best.seeds, best.trial) == (2, "b1")


def test_pruned_and_failed_trials_are_never_best_and_an_undefined_metric_is_none(ledger):
    book = ledger()
    finish(book, "pruned", 0.1, 0, 0.9)
    book.trials["pruned"].status = State.PRUNED
    assert book.best() is None
    finish(book, "undefined", 0.2, 0, 0.9, math.nan)
    assert book.trials["undefined"].objective is None
    assert book.trials["undefined"].metrics == {"accuracy": 0.9, "f1": None}
    assert book.best() is None


def test_the_last_report_of_a_model_that_solves_nothing_holds_none(ledger):
    """The last report comes from summary.json, where an undefined figure is null and not NaN."""
    book = ledger()
    trial = book.add(member("a", {"loss.alpha": 0.1}))
    book.evaluated(trial, 10, {"accuracy": 0.0, "f1": None})
    assert (trial.step, trial.metrics, trial.objective) == (10, {"accuracy": 0.0, "f1": None}, None)


@pytest.mark.parametrize(
    ("metric", "figures", "value"),
    [
        ("accuracy / ece", {"accuracy": 0.5, "ece": 0.0}, None),
        ("log(accuracy)", {"accuracy": 0.0}, None),
        ("max(accuracy, f1)", {"accuracy": 0.5, "f1": None}, None),
        ("max(f1, accuracy)", {"accuracy": 0.5, "f1": math.nan}, None),
        ("accuracy", {"accuracy": 0.5, "f1": None}, 0.5),
        ("accuracy - f1", {}, None),
    ],
)
def test_a_metric_is_defined_where_all_that_it_uses_is(ledger, metric, figures, value):
    assert ledger(metric).objective(figures) == value


def test_work_counts_a_trunk_once_and_each_trial_from_its_branch(ledger):
    book = ledger()
    trunk = book.add(member("trunk", {}, steps=6, is_trunk=True))
    trunk.step = 6
    for name, step in (("a", 10), ("b", 8)):  # b was pruned at step 8
        trial = book.add(member(name, {"loss.alpha": 0.1}, trunk="trunk"))
        trial.step, trial.branch_step = step, 6
    refused = book.add(member("c", {"loss.alpha": 0.1}, trunk="trunk"))
    refused.step, refused.branch_step = 6, 6  # failed before its first own step
    work = book.work()
    assert (work.steps_trained, work.steps_independent) == (6 + 4 + 2, 10 + 8)
    assert work.share == pytest.approx(12 / 18)


def test_after_a_kill_what_is_over_stays_over_and_the_rest_is_pending(ledger, tmp_path):
    book = ledger()
    finish(book, "finished", 0.1, 0, 0.5)
    for name, status in (("pruned", State.PRUNED), ("failed", State.FAILED), ("running", State.RUNNING)):
        trial = book.add(member(name, {"loss.alpha": 0.2}))
        trial.status, trial.step, trial.error = status, 4, "why" if status is State.FAILED else None
    book.save()
    for name in ("finished", "pruned", "failed", "running"):
        Journal(tmp_path / "trials" / name).start(name)
    (tmp_path / "trials" / "finished" / "summary.json").write_text("{}")

    again = ledger("accuracy")
    found = {
        name: again.add(member(name, {"loss.alpha": 0.2}))
        for name in ("finished", "pruned", "failed", "running", "new")
    }
    statuses = {name: trial.status for name, trial in found.items()}
    assert statuses == {
        "finished": "finished",
        "pruned": "pruned",
        "failed": "pending",
        "running": "pending",
        "new": "pending",
    }
    assert found["failed"].error is None
    assert found["finished"].objective == 0.5, "another metric is computed from the saved figures"
    longer = ledger().add(member("finished", {"loss.alpha": 0.1}, steps=20))
    assert longer.status is State.PENDING, "a trial with more steps than before resumes"
    shutil.rmtree(tmp_path / "trials" / "finished")
    deleted = ledger().add(member("finished", {"loss.alpha": 0.1}))
    assert (deleted.status, deleted.step, deleted.metrics) == (State.PENDING, 0, {}), "its folder was deleted"


def test_the_ledger_reads_steps_and_branch_from_the_runs_own_folder(ledger, tmp_path):
    book = ledger()
    trial = book.add(member("a", {"loss.alpha": 0.1}))
    book.look(trial)
    assert (trial.step, trial.branch_step, trial.mlflow_run_id) == (0, 0, None)
    folder = tmp_path / "trials" / "a"
    journal = Journal(folder)
    journal.start("a")
    (folder / "branch.json").write_text(
        json.dumps({"trunk": "../../trunks/t", "step": 6, "trunk_run_id": None})
    )
    book.look(trial)
    assert (trial.step, trial.branch_step) == (6, 6)
    journal.step(7, {"loss/total": 0.1})
    (folder / "mlflow_run_id").write_text("abc\n")
    book.look(trial)
    assert (trial.step, trial.mlflow_run_id) == (7, "abc")


def test_a_ledger_that_cannot_be_read_is_named(ledger, tmp_path):
    (tmp_path / "results.json").write_text('{"trials": [')
    with pytest.raises(ConfigError, match=r"results.json: cannot be read .*Delete it"):
        ledger()
