"""Which checkpoint a run resumes from: its folder's or that of `run.remote`, on a real S3 server."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config.schema import dump_config
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.storage import addresses
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.journal import Journal, StepEvent, read_events
from orchestrator.storage.remote import RemoteStorage
from orchestrator.training.run import fetch_newer
from tests import settings

STATE = TrainingState(
    step=2,
    num_ranks=2,
    prompt_order={"seed": 0, "position": 3},
    c_ref=-23.25,
    mlflow_run_id="abc",
    seconds=12.5,
    base={"f1": 0.25},
)

pytestmark = pytest.mark.usefixtures("s3")


@pytest.fixture
def configure(tmp_path):
    def make(remote="s3://laser/runs", **sections):
        run = {"name": f"run-{tmp_path.name}", "dir": str(tmp_path / "runs"), "remote": remote}
        return settings.configure(run=run, **sections)

    return make


def train_to(config: RunConfig, *steps: int) -> tuple[Checkpoints, RemoteStorage]:
    """Checkpoints and records here and at the URL, as a run of two ranks that saves each step leaves them."""
    checkpoints, remote = (
        Checkpoints(config.folder, 2, elsewhere=True),
        RemoteStorage(config.run.remote, config.run.name),
    )
    journal = Journal(config.folder)
    if not len(journal):
        journal.start(config.run.name)
    (config.folder / "config.yaml").write_text(dump_config(config))

    def write(folder: Path) -> None:
        (folder / "learner").mkdir()
        for rank in range(2):
            (folder / "learner" / f"random_state_{rank}.pt").write_text(folder.name)
        (folder / "export").mkdir()
        (folder / "export" / "config.json").write_text(folder.name)

    for step in steps:
        journal.step(step, {"loss/total": 1.0})
        journal.mark_sent(len(journal) - 1)
        state = replace(STATE, step=step, seconds=float(step))

        def upload(folder: Path, state: TrainingState = state) -> None:
            def send(place: str) -> None:
                remote.upload([path for path in folder.rglob("*/*") if path.is_file()], folder, place)
                remote.upload_records(config.folder)

            remote.save(state, 2, send, (folder / "state.json").read_text())

        checkpoints.save(state, write, upload)
    return checkpoints, remote


def steps_of(folder: Path) -> list[int]:
    return [event.step for event in read_events(folder) if isinstance(event, StepEvent)]


def test_a_lost_folder_is_restored_up_to_the_newest_checkpoint(configure, tmp_path):
    config = configure()
    (config.folder / "samples").mkdir(parents=True)
    (config.folder / "samples" / "test-000001.json").write_text("{}")
    (config.folder / "evaluations").mkdir()
    (config.folder / "evaluations" / "test-000001.parquet").write_bytes(b"PAR1\xff")
    (config.folder / "evaluations" / ".test-000002.parquet.partial").write_bytes(b"half")
    (config.folder / "mlflow_run_id").write_text("abc")
    checkpoints, remote = train_to(config, 1, 2)
    Journal(config.folder).step(3, {"loss/total": 1.0})  # after the checkpoint, so it is trained again
    before = config.folder.rename(tmp_path / "lost")

    fetch_newer(config, checkpoints, remote)
    folder, state = checkpoints.newest()
    assert (folder.name, state) == ("step-000002", replace(STATE, seconds=2.0))
    assert not (folder / "learner").exists(), "each rank fetches its own"
    assert (config.folder / "export" / "config.json").read_text() == ".partial-000002"
    assert steps_of(config.folder) == [1, 2]
    assert Journal(config.folder).sent == 2
    for name in ("config.yaml", "mlflow_run_id", "samples/test-000001.json"):
        assert (config.folder / name).read_text() == (before / name).read_text()
    evaluations = [(path.name, path.read_bytes()) for path in (config.folder / "evaluations").iterdir()]
    assert evaluations == [("test-000001.parquet", b"PAR1\xff")]


def test_the_newer_of_both_is_resumed(configure, tmp_path):
    config = configure()
    checkpoints, remote = train_to(config, 1, 2)
    earlier = tmp_path / "earlier"
    config.folder.rename(earlier)
    fetch_newer(config, checkpoints, remote)
    train_to(config, 3)

    config.folder.rename(tmp_path / "later")  # the first head node again, whose folder ends at step 2
    earlier.rename(config.folder)
    (config.folder / "mlflow_run_id").write_text("of an attempt that is not uploaded")
    fetch_newer(config, checkpoints, remote)
    assert checkpoints.newest()[1].step == 3
    assert steps_of(config.folder) == [1, 2, 3]
    assert not (config.folder / "mlflow_run_id").exists()
    assert (config.folder / "checkpoints" / "step-000002" / "learner").exists()

    newer_here = configure(remote=None)
    Checkpoints(newer_here.folder, 2).save(replace(STATE, step=4), lambda folder: (folder / "export").mkdir())
    fetch_newer(config, checkpoints, remote)
    assert checkpoints.newest()[1].step == 4


def test_of_two_attempts_at_a_step_the_uploaded_one_is_resumed(configure):
    config = configure()
    checkpoints, remote = train_to(config, 2)
    checkpoints.save(replace(STATE, seconds=99.0), lambda folder: (folder / "export").mkdir())
    fetch_newer(config, checkpoints, remote)
    assert checkpoints.newest()[1].seconds == 2.0


def test_the_name_of_another_run_is_refused_and_its_folder_stays_as_it_is(configure, tmp_path):
    train_to(configure(), 2)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    config = configure(loss={"alpha": 0.5})
    remote = RemoteStorage(config.run.remote, config.run.name)
    with pytest.raises(
        ConfigError,
        match=r"s3://laser/runs/run-\S+ holds a run with other settings:\n  loss.alpha: 0.1 before, 0.5 now",
    ):
        fetch_newer(config, Checkpoints(config.folder, 2), remote)
    assert not config.folder.exists()


def test_a_url_that_cannot_be_reached_is_refused_with_its_place_and_advice(configure, monkeypatch, tmp_path):
    def refusal(url: str) -> str:
        config = configure(remote=url)
        with pytest.raises(ConfigError) as caught:
            fetch_newer(config, Checkpoints(config.folder, 2), RemoteStorage(url, config.run.name))
        return str(caught.value)

    missing = refusal("s3://elsewhere/runs")
    assert missing.startswith(f"s3://elsewhere/runs/run-{tmp_path.name}/.try-")
    assert "Bucket 'elsewhere' not found" in missing
    assert "Look at run.remote, the credentials" in missing
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(f"file://{tmp_path}/file/runs")
    assert refusal("nothing://here").startswith(
        "run.remote=nothing://here: cannot be opened (Unrecognized filesystem type"
    )
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        unanswered = refusal("s3://laser/runs")
        assert "the address of AWS_ENDPOINT_URL_S3 (Connection refused)" in unanswered
        nobody.listen()  # accepts, and never answers
        monkeypatch.setattr(addresses, "ANSWER_S", 0.2)
        assert "(no answer within 0.2 s)" in refusal("s3://laser/runs")
        place = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert "the address of endpoint_override (no answer" in refusal(
            f"s3://laser/runs?scheme=http&endpoint_override={place}"
        )
