"""Damage to the files of a checkpoint or an exported model: random faults with fixed seeds."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.models.resolve import resolve_model
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.checksums import (
    CHECKSUMS,
    FileSum,
    model_damage,
    refuse_damaged_model,
    seal_export,
    sealed,
    unsealed,
)

STORED = Path(__file__).parents[1] / "stored" / "run" / "checkpoints" / "step-000002"
STATE = TrainingState(
    1, 1, {"seed": 0, "size": 8, "epoch": 0, "position": 4}, -9.5, None, 1e-05, {"auroc": 0.5}
)


def write_model(folder: Path) -> None:
    """The shards and the export of a real run of one rank."""
    shutil.copytree(STORED / "learner", folder / "learner")
    shutil.copytree(STORED / "export", folder / "export")
    seal_export(folder / "export", {})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(replace(STATE, step=step), write_model)
    return folder


def cut(file: Path, rng: random.Random) -> None:
    with file.open("r+b") as opened:
        opened.truncate(rng.randrange(file.stat().st_size))


def flip_a_bit(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def overwrite_a_block(file: Path, rng: random.Random) -> None:
    """4 KiB, aligned as a file system's, or the file's whole length if it is shorter."""
    size = file.stat().st_size
    with file.open("r+b") as opened:
        start = rng.randrange(0, size, 4096)
        opened.seek(start)
        opened.write(rng.randbytes(min(4096, size - start)))


def empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def remove(file: Path, rng: random.Random) -> None:
    file.unlink()


def zero_to_the_end(file: Path, rng: random.Random) -> None:
    """As a file system leaves blocks that were not written before a power cut: the size is right."""
    size = file.stat().st_size
    start = rng.randrange(size)
    with file.open("r+b") as opened:
        if not any(opened.read()[start:]):
            start = 0
        opened.truncate(start)
        opened.truncate(size)


FAULTS = {
    cut: 200, flip_a_bit: 50, overwrite_a_block: 25, empty: 15, remove: 15, zero_to_the_end: 15,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_checkpoint_is_never_whole_and_the_one_before_it_is_used(saved, tmp_path, fault):
    rng = random.Random(fault.__name__)
    run = tmp_path / "run"
    shutil.copytree(saved, run, symlinks=True)
    newest = run / "checkpoints" / "step-000002"
    files = [path for path in sorted(newest.rglob("*")) if path.is_file()]
    for number in range(FAULTS[fault]):
        # Each file once, then any.
        file = files[number] if number < len(files) else rng.choice(files)
        before = file.read_bytes()
        fault(file, rng)
        checkpoints = Checkpoints(run, keep=2)
        folder, state = checkpoints.newest()
        assert (folder.name, state.step) == ("step-000001", 1), f"{fault.__name__} of {file}"
        (problem,) = checkpoints.take_notes()
        assert problem.startswith(f"{newest} is damaged: {file.relative_to(newest)} "), problem
        file.write_bytes(before)
    assert Checkpoints(run, keep=2).newest()[1].step == 2, "the mended file makes it whole again"


def test_a_file_that_does_not_belong_makes_a_checkpoint_damaged(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run, symlinks=True)
    (run / "checkpoints" / "step-000002" / "learner" / "zero3" / "zero_pp_rank_1_model.pt").write_text("")
    checkpoints = Checkpoints(run, keep=2)
    assert checkpoints.newest()[1].step == 1
    assert "zero_pp_rank_1_model.pt does not belong to it" in checkpoints.take_notes()[0]


def test_no_whole_checkpoint_is_one_error_that_names_each_file_and_deletes_nothing(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run, symlinks=True)
    (run / "checkpoints" / "step-000001" / "export" / "config.json").unlink()
    empty(run / "checkpoints" / "step-000002" / "state.json", random.Random(0))
    before = sorted(run.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        Checkpoints(run, keep=2).newest()
    message = str(caught.value)
    assert "step-000001: export/config.json is missing" in message
    assert "step-000002: state.json is not a state" in message
    assert sorted(run.rglob("*")) == before


def test_pruning_does_not_count_a_damaged_checkpoint(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run, symlinks=True)
    checkpoints = Checkpoints(run, keep=2)
    assert checkpoints.newest()[1].step == 2
    # Damaged after it was found whole, and of the same size.
    flip_a_bit(next((run / "checkpoints" / "step-000002" / "learner" / "zero3").iterdir()), random.Random(1))
    checkpoints.save(replace(STATE, step=3), write_model)
    assert {path.name for path in checkpoints.folder.iterdir()} == {
        "step-000001", "step-000002", "step-000003"
    }  # fmt: skip
    checkpoints.save(replace(STATE, step=4), write_model)
    assert {path.name for path in checkpoints.folder.iterdir()} == {"step-000003", "step-000004"}


def test_export_links_to_the_newest_whole_checkpoint(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run, symlinks=True)
    remove(run / "checkpoints" / "step-000002" / "learner" / "random_state_0.pt", random.Random(0))
    Checkpoints(run, keep=2).link_export()
    assert (run / "export").resolve().parent.name == "step-000001"


def test_a_checkpoint_of_an_earlier_version_loads_with_a_note(tmp_path):
    shutil.copytree(STORED, tmp_path / "run" / "checkpoints" / STORED.name)
    checkpoints = Checkpoints(tmp_path / "run", keep=2)
    assert checkpoints.newest()[1].step == 2
    (note,) = checkpoints.take_notes()
    assert "has no checksums" in note


def test_a_copy_of_an_export_is_compared_with_its_own_checksums(saved, tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(saved / "export", copied)
    (copied / "README.md").write_text("A copy may have more files.")
    refuse_damaged_model(copied)
    rng = random.Random(5)
    for fault in FAULTS:
        for file in (copied / "model.safetensors", copied / "tokenizer.json", copied / CHECKSUMS):
            before = file.read_bytes()
            fault(file, rng)
            if not (fault is remove and file.name == CHECKSUMS):
                with pytest.raises(ConfigError, match=f"{copied}: is damaged: .*{file.name}"):
                    refuse_damaged_model(copied)
            file.write_bytes(before)
    assert model_damage(copied) is None


def test_a_run_with_damaged_weights_means_the_checkpoint_before_and_says_so(saved, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(saved, run, symlinks=True)
    flip_a_bit(run / "export" / "model.safetensors", random.Random(3))
    model = resolve_model(str(run))
    assert model.path == str(run / "checkpoints" / "step-000001" / "export")
    assert model.origin == f"{run} step-000001"
    (warning,) = caplog.messages
    assert "step-000002 is damaged: export/model.safetensors has other content" in warning
    assert "step-000001, the checkpoint before it" in warning
    with pytest.raises(ConfigError, match=r"step-000002/export: is damaged: export/model\.safetensors"):
        resolve_model(str(run / "checkpoints" / "step-000002" / "export"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        sealed({"step": 1e-05}, {}).replace("1e-05", "1E-05"),
        sealed({"step": 1}, {}).replace("  ", " "),
        sealed({"step": 1}, {"a": FileSum(1, "0")}).replace("1,", "2,"),
        '{"files": 3, "checksum": "0"}',
        '{"files": {"a": 1}, "checksum": "0"}',
        '{"checksum": "0"}',
    ],
)
def test_a_text_that_is_not_what_was_written_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        unsealed(text)
