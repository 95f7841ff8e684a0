"""A run's checkpoints at a URL: on a real S3 server, and in a folder."""

import contextlib
import json
import math
import socket
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import ray
from moto.server import ThreadedMotoServer

from orchestrator.cluster.shared_storage import check_shared_folders, inspect_node
from orchestrator.config.schema import dump_config, validate
from orchestrator.config.sweep import SweepConfig, base_config
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.journal import Journal, StepEvent, read_events
from orchestrator.storage.remote import RemoteStorage, place_of
from orchestrator.storage.shards import writer_of
from orchestrator.training.run import _fetch_newer

STATE = TrainingState(
    step=2,
    num_ranks=2,
    prompt_order={"seed": 0, "position": 3},
    c_ref=-23.25,
    mlflow_run_id="abc",
    seconds=12.5,
    base={"f1": 0.25},
)


@pytest.fixture(scope="module")
def s3():
    """The address of an S3 server that has the bucket `laser`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **keys).create_bucket(
        Bucket="laser"
    )
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch, s3):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL_S3": s3,
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["s3", "file", "memory"])
def remote(request, s3, tmp_path):
    """pyarrow's own file systems, and one of fsspec's."""
    scheme = {"s3": "s3://laser", "file": f"file://{tmp_path}/remote", "memory": "memory://laser"}[
        request.param
    ]
    return RemoteStorage(f"{scheme}/runs", f"run-{tmp_path.name}")


def save(remote: RemoteStorage, folder: Path, *steps: int, keep: int = 2) -> None:
    """Checkpoints of two ranks' shards."""
    for step in steps:
        files = [
            folder / f"step-{step}" / "learner" / name
            for name in ("zero3/zero_pp_rank_0_mp_rank_00.pt", "random_state_1.pt")
        ]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{file.name} of step {step}")
        remote.save(
            replace(STATE, step=step),
            keep,
            lambda place, files=files: remote.upload(files, files[1].parents[1], place),
        )


def listed(remote: RemoteStorage, place: str = "") -> list[str]:
    found = remote._list(f"{place}".rstrip("/"), recursive=True)
    root = f"{remote._root}/"
    return sorted(info.path.partition(root)[2] for info in found if info.is_file)


def fetched(remote: RemoteStorage, step: int, folder: Path, rank: int) -> dict[str, str]:
    remote.fetch(f"{place_of(step)}/learner", folder, lambda name: writer_of(name) == rank)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_comes_back_each_rank_s_part_to_it(remote, tmp_path):
    assert remote.newest() is None
    save(remote, tmp_path, 2)
    assert remote.newest() == STATE
    assert remote.holds(STATE)
    assert not remote.holds(replace(STATE, seconds=12.6)), "another attempt at the same step"
    assert fetched(remote, 2, tmp_path / "a", rank=0) == {
        "zero3/zero_pp_rank_0_mp_rank_00.pt": "zero_pp_rank_0_mp_rank_00.pt of step 2"
    }
    assert fetched(remote, 2, tmp_path / "b", rank=1) == {"random_state_1.pt": "random_state_1.pt of step 2"}


def test_a_state_that_an_earlier_version_wrote_with_nan_is_still_the_same_checkpoint(remote, tmp_path):
    save(remote, tmp_path, 2)
    place = f"{place_of(2)}/state.json"
    remote.write(place, remote.read(place).replace(b'"f1": 0.25', b'"f1": NaN'))
    state = remote.newest()
    assert math.isnan(state.base["f1"])
    assert remote.holds(state)
    assert not remote.holds(STATE)


def test_without_its_state_a_checkpoint_does_not_count_and_the_next_save_removes_it(remote, tmp_path):
    save(remote, tmp_path, 2)

    def die(place: str) -> None:
        remote.write(f"{place}/learner/random_state_0.pt", b"half")
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        remote.save(replace(STATE, step=4), 2, die)
    assert "checkpoints/step-000004/learner/random_state_0.pt" in listed(remote)
    assert remote.newest().step == 2
    save(remote, tmp_path, 6)
    assert {path.split("/")[1] for path in listed(remote, "checkpoints")} == {"step-000002", "step-000006"}


def test_older_checkpoints_are_pruned_in_the_order_of_their_numbers(remote, tmp_path):
    save(remote, tmp_path, 1, 999_999, 1_000_000, 1_000_001)
    assert {path.split("/")[1] for path in listed(remote, "checkpoints")} == {"step-1000000", "step-1000001"}
    assert remote.newest().step == 1_000_001


def test_a_step_that_is_saved_again_has_nothing_of_the_first(remote, tmp_path):
    remote.save(STATE, 2, lambda place: remote.write(f"{place}/learner/stale.pt", b""))
    save(remote, tmp_path, 2)
    assert not [path for path in listed(remote) if "stale" in path]


def test_a_checkpoint_that_is_being_replaced_does_not_count_meanwhile(remote, tmp_path):
    save(remote, tmp_path, 1, 2)
    seen = []
    remote.save(STATE, 2, lambda place: seen.append(remote.newest().step))
    assert seen == [1]


@pytest.fixture
def configure(tmp_path):
    def make(remote="s3://laser/runs", **sections):
        tree = {
            "run": {
                "name": f"run-{tmp_path.name}",
                "steps": 3,
                "dir": str(tmp_path / "runs"),
                "remote": remote,
            },
            "model": {"path": "models/base"},
            "data": {"train": "train.jsonl"},
            "self_reward": {"token": "<|z|>"},
        }
        return validate(tree | sections, RunConfig, "test")

    return make


def train_to(config: RunConfig, *steps: int) -> tuple[Checkpoints, RemoteStorage]:
    """What a run of two ranks that save at each step leaves here and there."""
    checkpoints, remote = Checkpoints(config.folder, 2), RemoteStorage(config.run.remote, config.run.name)
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

            remote.save(state, 2, send)

        checkpoints.save(state, write, upload)
    return checkpoints, remote


def steps_of(folder: Path) -> list[int]:
    return [event.step for event in read_events(folder) if isinstance(event, StepEvent)]


def test_a_folder_that_is_lost_comes_back_up_to_the_newest_checkpoint(configure, tmp_path):
    config = configure()
    (config.folder / "samples").mkdir(parents=True)
    (config.folder / "samples" / "test-000001.json").write_text("{}")
    (config.folder / "evaluations").mkdir()
    (config.folder / "evaluations" / "test-000001.parquet").write_bytes(b"PAR1\xff")
    (config.folder / "evaluations" / ".test-000002.parquet.partial").write_bytes(b"half")
    (config.folder / "mlflow_run_id").write_text("abc")
    checkpoints, remote = train_to(config, 1, 2)
    Journal(config.folder).step(3, {"loss/total": 1.0})  # after the checkpoint: trained again
    before = config.folder.rename(tmp_path / "lost")

    _fetch_newer(config, checkpoints, remote)
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


def test_the_newer_of_both_is_gone_on_with(configure, tmp_path):
    config = configure()
    checkpoints, remote = train_to(config, 1, 2)
    earlier = tmp_path / "earlier"
    config.folder.rename(earlier)
    _fetch_newer(config, checkpoints, remote)
    train_to(config, 3)

    config.folder.rename(tmp_path / "later")  # the first head node again, whose folder ends at step 2
    earlier.rename(config.folder)
    (config.folder / "mlflow_run_id").write_text("of an attempt that the newer one knows nothing of")
    _fetch_newer(config, checkpoints, remote)
    assert checkpoints.newest()[1].step == 3
    assert steps_of(config.folder) == [1, 2, 3]
    assert not (config.folder / "mlflow_run_id").exists()
    assert (config.folder / "checkpoints" / "step-000002" / "learner").exists()

    newer_here = configure(remote=None)
    Checkpoints(newer_here.folder, 2).save(replace(STATE, step=4), lambda folder: (folder / "export").mkdir())
    _fetch_newer(config, checkpoints, remote)
    assert checkpoints.newest()[1].step == 4


def test_of_two_attempts_at_a_step_the_one_that_every_node_can_have_is_gone_on_with(configure):
    config = configure()
    checkpoints, remote = train_to(config, 2)
    checkpoints.save(replace(STATE, seconds=99.0), lambda folder: (folder / "export").mkdir())
    _fetch_newer(config, checkpoints, remote)
    assert checkpoints.newest()[1].seconds == 2.0


def test_another_run_s_name_is_refused_and_its_folder_here_left_alone(configure, tmp_path):
    train_to(configure(), 2)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    config = configure(loss={"alpha": 0.5})
    remote = RemoteStorage(config.run.remote, config.run.name)
    with pytest.raises(
        ConfigError,
        match=r"s3://laser/runs/run-\S+ holds a run with other settings:\n  loss.alpha: 0.1 before, 0.5 now",
    ):
        _fetch_newer(config, Checkpoints(config.folder, 2), remote)
    assert not config.folder.exists()


def test_what_cannot_be_reached_is_refused_with_its_place_and_what_to_look_at(
    configure, monkeypatch, tmp_path
):
    def refusal(url: str) -> str:
        config = configure(remote=url)
        with pytest.raises(ConfigError) as caught:
            _fetch_newer(config, Checkpoints(config.folder, 2), RemoteStorage(url, config.run.name))
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
        assert "Could not connect to server" in refusal("s3://laser/runs")


@pytest.mark.parametrize("ranks_here", [2, 1])
def test_a_failing_upload_leaves_the_checkpoint_here_if_all_of_it_is_here(tmp_path, ranks_here):
    checkpoints, remote = Checkpoints(tmp_path / "run", 2), RemoteStorage("s3://elsewhere/runs", "run")

    def write(folder: Path) -> None:
        (folder / "learner").mkdir()
        (folder / "export").mkdir()
        for rank in range(ranks_here):
            (folder / "learner" / f"random_state_{rank}.pt").touch()

    with pytest.raises(RunError) as caught:
        checkpoints.save(
            STATE,
            write,
            lambda folder: remote.upload(folder.rglob("*.pt"), folder, "checkpoints/step-000002"),
        )
    message = str(caught.value)
    assert message.startswith("s3://elsewhere/runs/run/checkpoints/step-000002/learner/random_state_")
    if ranks_here == 2:
        assert f"{checkpoints.folder}/step-000002 is complete and stays" in message
        assert checkpoints.newest() is not None
    else:
        assert "continues from the checkpoint before" in message
        assert checkpoints.newest() is None


def test_a_node_that_cannot_use_the_url_says_what_is_wrong_there(tmp_path):
    remote, folder = RemoteStorage("s3://laser/runs", "shared"), str(tmp_path / "shared")
    remote.write(".mark", b"")
    assert inspect_node(folder, "s3://laser/runs", None, ".mark")[1] == ""
    assert (
        inspect_node(folder, f"file://{tmp_path}", None, ".mark")[1]
        == f"file://{tmp_path}/shared is another place there"
    )
    assert listed(remote) == [".mark"]
    assert "Name s3://, gs:// or file:///" in inspect_node(folder, "nothing://here", None, ".mark")[1]


def test_every_learner_s_node_is_asked_for_the_url_the_driver_s_too(ray_cluster, tmp_path):
    here = {ray.get_runtime_context().get_node_id(): "learning, rollout"}
    check_shared_folders(tmp_path / "run", "name/on-the-hub", here, f"file://{tmp_path}/remote")
    assert list((tmp_path / "remote").rglob("*")) == [tmp_path / "remote" / "run"]
    assert not (tmp_path / "run").exists()


def test_small_files_are_replaced_and_large_ones_go_in_parts(tmp_path):
    remote = RemoteStorage("s3://laser/runs?region=us-east-1", "large")
    assert remote.shown == "s3://laser/runs/large"
    remote.write("metrics.jsonl", b"one")
    remote.write("metrics.jsonl", b"one, two")
    assert remote.read("metrics.jsonl") == b"one, two"
    assert remote.read("nothing") is None
    big = tmp_path / "from" / "shard.pt"
    big.parent.mkdir()
    big.write_bytes(bytes(range(256)) * 100_000)  # 25.6 MB: several parts of an upload
    remote.upload([big], big.parent, "learner")
    remote.fetch("learner", tmp_path / "to")
    assert (tmp_path / "to" / "shard.pt").read_bytes() == big.read_bytes()


@pytest.mark.parametrize(
    ("remote", "complaint"),
    [("bucket/runs", "is no URL: write s3://bucket/runs"), ("s3://key:secret@bucket/runs", "holds a secret")],
)
def test_a_url_that_would_show_a_secret_or_is_none_is_refused(configure, remote, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        configure(remote=remote)
    assert "key:" not in str(caught.value)


def test_a_sweep_refuses_it(configure, tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(dump_config(configure(data={"train": "train.jsonl", "eval": "test.jsonl"})))
    tree = {
        "name": "s",
        "base": str(base),
        "metric": "accuracy",
        "space": {"loss.alpha": {"grid": [0.1, 0.5]}},
    }
    with pytest.raises(
        ConfigError, match=r"run\.remote is s3://laser/runs, but a sweep needs a folder that its nodes share"
    ):
        base_config(validate(tree, SweepConfig, "test"))


def test_states_of_other_versions_are_told(s3, tmp_path):
    remote = RemoteStorage("s3://laser/runs", f"old-{tmp_path.name}")
    remote.write("checkpoints/step-000001/state.json", json.dumps({"step": 1}).encode())
    with pytest.raises(
        RunError,
        match=r"step-000001/state.json: is not a state this version can read .* delete s3://laser/runs/old",
    ):
        remote.newest()
