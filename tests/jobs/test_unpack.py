"""The start of a job on the cluster: its inputs and its command."""

from pathlib import Path

from orchestrator import cli
from orchestrator.jobs.staging import load_job
from orchestrator.jobs.unpack import unpack
from tests.jobs.folders import staged


def test_the_driver_runs_the_command_of_its_kind_in_a_folder_of_the_run(here, monkeypatch):
    """Each submission has the same folder: the paths of its inputs identify a sweep or an evaluation."""
    monkeypatch.setenv("HOME", str(here / "home"))
    for name in ("LASER_STEP_RECORDS", "COLUMNS"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
    expected = {
        "run.yaml": ("train", ["train", str(here / "staged/job.yaml"), f'run.dir="{here}/home/laser/runs"']),
        "sweep.yaml": (
            "sweep",
            ["sweep", str(here / "staged/job.yaml"), f'settings.run.dir="{here}/home/laser/runs"'],
        ),
        "eval.yaml": (
            "eval",
            [
                "eval",
                "--config",
                str(here / "staged/job.yaml"),
                f'dir="{here}/home/laser/runs"',
                f'folder="{here}/home/laser/scores"',
            ],
        ),
    }
    for file, (kind, arguments) in expected.items():
        monkeypatch.chdir(here)
        job = load_job(Path(file), [])
        if (here / "staged").exists():
            (here / "staged").rename(here / f"before-{kind}")
        staged(job)
        monkeypatch.chdir(here / "staged")
        assert unpack() == arguments
        assert Path.cwd() == here / "home/laser/inputs" / job.name
        assert Path("test.jsonl").is_file()


def test_storage_that_cannot_be_written_is_named(here, monkeypatch, capsys):
    staged(load_job(Path("run.yaml"), []), storage=str(here / "train.jsonl"))
    monkeypatch.chdir(here / "staged")
    assert cli.main(["job"]) == 2
    assert f"storage {here / 'train.jsonl'} cannot be used" in capsys.readouterr().err
