"""One rank's files of a checkpoint: which they are, where they stay, and when they are downloaded."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.checkpoints import TrainingState
from orchestrator.storage.checksums import STATE, sum_files
from orchestrator.storage.remote import RemoteStorage, place_of
from orchestrator.storage.shards import ShardFiles, writer_of

SAVED = TrainingState(
    step=2, num_ranks=2, prompt_order={}, c_ref=None, mlflow_run_id=None, seconds=1.0, base=None
)
RANK_0 = ["export/model.safetensors", "learner/random_state_0.pt", "learner/zero3/zero_pp_rank_0_model.pt"]
RANK_1 = ["learner/random_state_1.pt", "learner/zero3/zero_pp_rank_1_model.pt"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/remote"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that both ranks have written to, as on one node, before the driver adds the state."""
    folder = tmp_path / "run" / "checkpoints" / ".partial-000002"
    for name in [*RANK_0, *RANK_1, "export/self_reward.json"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def uploaded(url: str, checkpoint: Path) -> None:
    (checkpoint / STATE).write_text(SAVED.text({}))
    for rank in (0, 1):
        ShardFiles(rank, 2, "r", url).upload(checkpoint, place_of(2))
    RemoteStorage(url, "r").write(f"{place_of(2)}/{STATE}", SAVED.text({}).encode())


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("zero_pp_rank_1_mp_rank_00_optim_states.pt", 1),
        ("zero_pp_rank_10_mp_rank_00_model_states.pt", 10),
        ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", 1),
        ("random_state_12.pt", 12),
        ("zero_to_fp32.py", 0),
        ("model-00001-of-00002.safetensors", 0),
    ],
)
def test_each_file_of_a_checkpoint_has_one_rank(name, rank):
    assert writer_of(name) == rank


@pytest.mark.parametrize(("rank", "expected"), [(0, RANK_0), (1, RANK_1)])
def test_a_rank_uploads_its_own_files_and_the_driver_the_card(url, tmp_path, checkpoint, rank, expected):
    (checkpoint / STATE).write_text(SAVED.text({}))
    ShardFiles(rank, 2, "r", url).upload(checkpoint, place_of(2))
    assert files_in(tmp_path / "remote" / "r" / place_of(2)) == expected
    assert set(files_in(checkpoint)) >= {*RANK_0, *RANK_1}, "the driver sees this folder and prunes it"


def test_uploaded_files_are_deleted_from_a_disk_that_the_driver_does_not_share(url, checkpoint):
    ShardFiles(1, 2, "r", url).upload(checkpoint, place_of(2))
    assert files_in(checkpoint) == ["export/model.safetensors", "export/self_reward.json", *RANK_0[1:]]


def test_another_node_downloads_the_rank_s_files_and_deletes_them_once_read(url, tmp_path, checkpoint):
    uploaded(url, checkpoint)
    here = tmp_path / "other-node" / "checkpoints" / "step-000002"
    files = ShardFiles(1, 2, "r", url)
    files.fetch(here, SAVED, "10.0.0.2")
    with files.readable(here / "learner") as source:
        assert files_in(source) == ["random_state_1.pt", "zero3/zero_pp_rank_1_model.pt"]
    assert not source.exists()
    with files.readable(here / "learner") as source:
        assert source == here / "learner"


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_another_number_of_ranks_downloads_and_compares_the_files_of_all(
    url, tmp_path, checkpoint, num_ranks
):
    uploaded(url, checkpoint)
    sums = sum_files(checkpoint, [name for name in [*RANK_0, *RANK_1] if name.startswith("learner/")])
    here = tmp_path / "other-node" / "checkpoints" / "step-000002"
    files = ShardFiles(num_ranks - 1, num_ranks, "r", url)
    files.fetch(here, SAVED, "10.0.0.2")
    with files.readable(here / "learner") as source:
        assert [f"learner/{name}" for name in files_in(source)] == [*sorted(RANK_0[1:] + RANK_1)]
        assert files.problem(here, sums, saved_by=2) is None
        (source / "random_state_0.pt").write_text("")
        assert files.problem(here, sums, saved_by=2) == (
            "learner/random_state_0.pt has other content than when it was written"
        )
    files.fetch(checkpoint, SAVED, "10.0.0.2")
    with files.readable(checkpoint / "learner") as source:
        assert source == checkpoint / "learner", "this node has the files of all"
    (checkpoint / "learner" / "random_state_1.pt").unlink()
    files.fetch(checkpoint, SAVED, "10.0.0.2")
    with files.readable(checkpoint / "learner") as source:
        assert source != checkpoint / "learner"


def test_files_on_this_node_are_not_downloaded(url, checkpoint):
    uploaded(url, checkpoint)
    files = ShardFiles(1, 2, "r", url)
    files.fetch(checkpoint, SAVED, "10.0.0.2")
    with files.readable(checkpoint / "learner") as source:
        assert source == checkpoint / "learner"


def test_files_of_another_attempt_at_the_step_are_not_used(url, checkpoint):
    uploaded(url, checkpoint)
    (checkpoint / STATE).write_text(replace(SAVED, seconds=2.0).text({}))
    files = ShardFiles(1, 2, "r", url)
    files.fetch(checkpoint, SAVED, "10.0.0.2")
    with files.readable(checkpoint / "learner") as source:
        assert source != checkpoint / "learner"


def test_a_missing_checkpoint_is_refused_with_rank_node_and_url(url, tmp_path):
    with pytest.raises(
        RunError, match=r"no files of learner rank 1 on node 10\.0\.0\.2, and file://.*/r has no such"
    ):
        ShardFiles(1, 2, "r", url).fetch(tmp_path / "step-000002", SAVED, "10.0.0.2")


def test_a_url_that_cannot_be_opened_is_refused(checkpoint):
    with pytest.raises(ConfigError, match=r"run\.remote=nowhere://x: cannot be opened"):
        ShardFiles(0, 2, "r", "nowhere://x").upload(checkpoint, place_of(2))


def test_a_state_that_an_earlier_version_wrote_with_nan_is_here(url, checkpoint):
    """Base figures of a run without a score are not defined; they were NaN in state.json and are null now."""
    state = replace(SAVED, base={"accuracy": 0.5, "auroc": math.nan})
    (checkpoint / STATE).write_text(json.dumps(state.tree()).replace('"auroc": null', '"auroc": NaN'))
    files = ShardFiles(0, 2, "r", url)  # where nothing was uploaded: a download would be refused
    files.fetch(checkpoint, state, "127.0.0.1")
    with files.readable(checkpoint) as source:
        assert source == checkpoint
