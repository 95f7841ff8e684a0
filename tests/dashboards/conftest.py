import pytest

from tests.dashboards.folders import evaluation_values, write_config, write_journal, write_sweep


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "beta-alpha"
    write_sweep(folder, samples=80)
    return folder


@pytest.fixture
def run_folder(tmp_path):
    """A finished run with the least that a run has."""
    folder = tmp_path / "plain"
    steps = {1: {"train/accuracy": 0.25}, 2: {"train/accuracy": 0.5}}
    write_journal(folder, "plain", steps, {0: evaluation_values(0.2, 0.4), 2: evaluation_values(0.6, 0.8)})
    write_config(folder, run__seed=3, loss__alpha=0.5)
    return folder
