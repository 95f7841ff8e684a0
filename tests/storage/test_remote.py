"""A run's folder at a URL: on a real S3 server, and in a folder."""

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.checksums import files_of, sum_files
from orchestrator.storage.remote import RemoteStorage, place_of
from orchestrator.storage.shards import writer_of

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


@pytest.fixture(params=["s3", "file"])
def remote(request, tmp_path):
    scheme = {"s3": "s3://laser", "file": f"file://{tmp_path}/remote"}[request.param]
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
        state, root = replace(STATE, step=step), files[1].parents[1]
        remote.save(
            state,
            keep,
            lambda place, files=files, root=root: remote.upload(files, root, place),
            state.text(sum_files(root, files_of(root))),
        )


def fetched(remote: RemoteStorage, step: int, folder: Path, rank: int) -> dict[str, str]:
    remote.fetch(f"{place_of(step)}/learner", folder, lambda name: writer_of(name) == rank)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_each_rank_fetches_its_own_files_of_a_checkpoint(remote, tmp_path):
    assert remote.newest() is None
    save(remote, tmp_path, 2)
    assert remote.newest()[0] == STATE
    assert remote.holds(STATE)
    assert not remote.holds(replace(STATE, seconds=12.6)), "another attempt at the same step"
    assert fetched(remote, 2, tmp_path / "a", rank=0) == {
        "zero3/zero_pp_rank_0_mp_rank_00.pt": "zero_pp_rank_0_mp_rank_00.pt of step 2"
    }
    assert fetched(remote, 2, tmp_path / "b", rank=1) == {"random_state_1.pt": "random_state_1.pt of step 2"}


def test_a_state_that_an_earlier_version_wrote_with_nan_is_the_same_checkpoint(remote, tmp_path):
    save(remote, tmp_path, 2)
    place = f"{place_of(2)}/state.json"
    remote.write(place, json.dumps(STATE.tree()).replace('"f1": 0.25', '"f1": NaN').encode())
    state, sums = remote.newest()
    assert sums is None
    assert math.isnan(state.base["f1"])
    assert remote.holds(state)
    assert not remote.holds(STATE)


def test_a_checkpoint_without_its_state_does_not_count_and_the_next_save_deletes_it(remote, tmp_path):
    save(remote, tmp_path, 2)

    def die(place: str) -> None:
        remote.write(f"{place}/learner/random_state_0.pt", b"half")
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        remote.save(replace(STATE, step=4), 2, die, "")
    assert "checkpoints/step-000004/learner/random_state_0.pt" in remote.files()
    assert remote.newest()[0].step == 2
    save(remote, tmp_path, 6)
    assert {path.split("/")[0] for path in remote.files("checkpoints")} == {"step-000002", "step-000006"}


def test_older_checkpoints_are_pruned_in_the_order_of_their_numbers(remote, tmp_path):
    save(remote, tmp_path, 1, 999_999, 1_000_000, 1_000_001)
    assert {path.split("/")[0] for path in remote.files("checkpoints")} == {"step-1000000", "step-1000001"}
    assert remote.newest()[0].step == 1_000_001


def test_the_last_checkpoint_of_a_step_with_finite_numbers_is_never_pruned(remote, tmp_path):
    save(remote, tmp_path, 1, 2, keep=1)
    for step, skipped in ((3, 1), (4, 2), (5, 0)):
        state = replace(STATE, step=step, skipped_in_a_row=skipped)
        remote.save(state, 1, lambda place: None, state.text({}))
        assert remote._complete() == {3: [2, 3], 4: [2, 3, 4], 5: [5]}[step]


def test_a_step_that_is_saved_again_holds_no_file_of_the_first_save(remote, tmp_path):
    remote.save(STATE, 2, lambda place: remote.write(f"{place}/learner/stale.pt", b""), STATE.text({}))
    save(remote, tmp_path, 2)
    assert not [path for path in remote.files() if "stale" in path]


def test_a_checkpoint_does_not_count_while_it_is_replaced(remote, tmp_path):
    save(remote, tmp_path, 1, 2)
    seen = []
    remote.save(STATE, 2, lambda place: seen.append(remote.newest()[0].step), STATE.text({}))
    assert seen == [1]


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
        assert "resumes from the checkpoint before it" in message
        assert checkpoints.newest() is None


def test_small_files_are_replaced_and_large_ones_uploaded_in_parts(tmp_path):
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


def test_an_unreadable_state_is_refused_with_its_place(tmp_path):
    remote = RemoteStorage("s3://laser/runs", f"old-{tmp_path.name}")
    remote.write("checkpoints/step-000001/state.json", json.dumps({"step": 1}).encode())
    with pytest.raises(
        RunError,
        match=r"no checkpoint is whole; nothing was deleted.\n  s3://laser/.*/step-000001: state.json is ",
    ):
        remote.newest()


@pytest.mark.parametrize("url", ["nothing://here", "memory://laser", "s3:/"])
def test_a_url_that_cannot_be_opened_is_refused(url):
    with pytest.raises(
        ConfigError, match=rf"run\.remote={url}: cannot be opened .*Name s3://, gs:// or file:///"
    ):
        RemoteStorage(url, "run")
