"""A sweep that version 0.1.0 finished, `tests/stored/sweep`, can be extended."""

import shutil
from pathlib import Path

import pytest

from orchestrator.config.sweep import base_config, load_sweep
from orchestrator.sweeps.plan import SweepPlan
from orchestrator.sweeps.results import Ledger, State

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the sweep, with this place in its absolute paths."""
    shutil.copytree(REPOSITORY / "tests" / "stored", tmp_path / "tests" / "stored", symlinks=True)
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    for settings in (tmp_path / "tests" / "stored" / "sweep").rglob("*.yaml"):
        settings.write_text(settings.read_text().replace("@ROOT@", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "tests" / "stored"


@pytest.mark.usefixtures("stored")
def test_a_finished_sweep_keeps_its_trials_and_takes_new_values_and_seeds() -> None:
    file = Path("tests/stored/sweep.yaml")
    file.write_text(
        file.read_text().replace("grid: [1.0]", "grid: [1.0, 2.0]").replace("seeds: [0]", "seeds: [0, 1]")
    )
    sweep = load_sweep(file)
    plan = SweepPlan(sweep, base_config(sweep))
    ledger = Ledger(plan.folder, sweep.name, sweep.space, sweep.metric, "test")
    states = {trial.name: ledger.add(trial).status for trial in plan.trials}
    assert states == {
        "alpha-1_seed-0": State.FINISHED,
        "alpha-1_seed-1": State.PENDING,
        "alpha-2_seed-0": State.PENDING,
        "alpha-2_seed-1": State.PENDING,
    }
    assert ledger.trials["alpha-1_seed-0"].metrics["accuracy"] == pytest.approx(0.275)
