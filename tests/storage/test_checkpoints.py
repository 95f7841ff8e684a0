import contextlib
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.files import leased

STATE = TrainingState(
    step=0,
    num_ranks=2,
    prompt_order={"seed": 0, "size": 10, "epoch": 1, "position": 3},
    c_ref=-23.25,
    mlflow_run_id="abc",
    seconds=12.5,
    base={"accuracy": 0.25},
)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "run", keep=2)


def write_model(folder):
    """A fake of the learner ranks: shards and an export."""
    (folder / "learner").mkdir()
    (folder / "learner" / "shard.pt").write_text("weights")
    (folder / "export").mkdir()
    (folder / "export" / "config.json").write_text(folder.name)


def save(checkpoints, *steps, write=write_model):
    for step in steps:
        checkpoints.save(replace(STATE, step=step), write)


def names(checkpoints):
    return sorted(os.listdir(checkpoints.folder))


def exported_step(checkpoints):
    """The step whose weights `export` links to."""
    return (checkpoints.run_folder / "export").resolve(strict=True).parent.name


def test_a_new_run_has_none(checkpoints):
    assert checkpoints.newest() is None
    assert not checkpoints.run_folder.exists()


@pytest.mark.parametrize("state", [STATE, replace(STATE, c_ref=None, base=None)])
def test_the_state_reads_back(checkpoints, state):
    folder = checkpoints.save(state, write_model)
    assert checkpoints.newest() == (folder, state)
    assert (folder / "learner" / "shard.pt").read_text() == "weights"


def test_an_undefined_figure_is_null_in_the_state_and_nan_when_read(checkpoints):
    folder = checkpoints.save(replace(STATE, base={"accuracy": 0.25, "auroc": math.nan}), write_model)
    text = (folder / "state.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["base"] == {"accuracy": 0.25, "auroc": None}
    base = checkpoints.newest()[1].base
    assert base["accuracy"] == 0.25
    assert math.isnan(base["auroc"])
    assert checkpoints.newest()[1].text(checkpoints.checksums(folder)) == text


def test_a_state_of_an_earlier_version_holds_nan_itself(checkpoints):
    folder = checkpoints.save(replace(STATE, base={"auroc": 0.5}), write_model)
    path = folder / "state.json"
    path.write_text(json.dumps(checkpoints.newest()[1].tree()).replace('"auroc": 0.5', '"auroc": NaN'))
    assert math.isnan(checkpoints.newest()[1].base["auroc"])


def test_older_checkpoints_are_pruned_and_export_links_to_the_newest(checkpoints):
    for step in (1, 2, 3, 10):
        save(checkpoints, step)
        assert exported_step(checkpoints) == f"step-{step:06d}"
    assert names(checkpoints) == ["step-000003", "step-000010"]


def save_skipped(checkpoints, *steps):
    """Checkpoints of steps without an update."""
    for number, step in enumerate(steps, start=1):
        checkpoints.save(replace(STATE, step=step, skipped_in_a_row=number), write_model)


def test_the_last_checkpoint_of_a_step_with_finite_numbers_is_never_pruned(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    save(checkpoints, 1, 2)
    save_skipped(checkpoints, 3, 4)
    assert names(checkpoints) == ["step-000002", "step-000003", "step-000004"]
    assert checkpoints.newest()[1].skipped_in_a_row == 2
    save(checkpoints, 5)
    assert names(checkpoints) == ["step-000005"]


def test_a_damaged_checkpoint_is_not_the_last_one_with_finite_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    save(checkpoints, 1)
    save_skipped(checkpoints, 2)
    save(checkpoints, 3)
    assert names(checkpoints) == ["step-000003"]
    save_skipped(checkpoints, 4)
    (checkpoints.folder / "step-000003" / "learner" / "shard.pt").write_text("")
    save_skipped(checkpoints, 5)
    assert names(checkpoints) == ["step-000003", "step-000004", "step-000005"], "nothing better is left"


def test_leased_weights_are_pruned_by_the_first_save_after_their_lease(checkpoints):
    save(checkpoints, 1)
    export = checkpoints.folder / "step-000001" / "export"
    with leased(export / "config.json"):
        save(checkpoints, 2, 3, 4)
        assert names(checkpoints) == ["step-000001", "step-000003", "step-000004"]
        assert (export / "config.json").read_text() == ".partial-000001"
        assert checkpoints.newest()[1].step == 4
    save(checkpoints, 5)
    assert names(checkpoints) == ["step-000004", "step-000005"]


def test_a_pruned_checkpoint_is_deleted_with_no_file_of_it_open(checkpoints, monkeypatch):
    """NFS keeps an open file under another name, and then cannot remove its folder."""
    save(checkpoints, 1, 2)
    opened_in = []
    delete = shutil.rmtree

    def rmtree(folder):
        for opened in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
                path = os.readlink(f"/proc/self/fd/{opened}")
                opened_in.extend([path] if path.startswith(str(folder)) else [])
        delete(folder)

    monkeypatch.setattr("orchestrator.storage.checkpoints.shutil.rmtree", rmtree)
    save(checkpoints, 3)
    assert names(checkpoints) == ["step-000002", "step-000003"]
    assert opened_in == []


def test_steps_are_ordered_as_numbers(checkpoints):
    save(checkpoints, 999_999, 1_000_000, 1_000_001)
    assert names(checkpoints) == ["step-1000000", "step-1000001"]
    folder, state = checkpoints.newest()
    assert (folder.name, state.step) == ("step-1000001", 1_000_001)


def test_a_save_that_fails_leaves_the_checkpoint_before_it(checkpoints):
    save(checkpoints, 1)

    def fail(folder):
        write_model(folder)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save(checkpoints, 2, write=fail)
    assert not (checkpoints.folder / "step-000002").exists()
    folder, state = checkpoints.newest()
    assert (folder.name, state.step) == ("step-000001", 1)
    assert exported_step(checkpoints) == "step-000001"


def test_every_file_and_folder_is_on_the_disk_before_a_checkpoint_has_its_name(checkpoints, monkeypatch):
    """And its name before an older one is deleted."""
    events, fsync, rename, rmtree = [], os.fsync, Path.rename, shutil.rmtree

    def noted_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_rename(path, target):
        events.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    def noted_rmtree(folder):
        events.append(f"delete {folder.name}")
        rmtree(folder)

    save(checkpoints, 1, 2)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    monkeypatch.setattr("orchestrator.storage.checkpoints.shutil.rmtree", noted_rmtree)
    save(checkpoints, 3)
    named = events.index(".partial-000003 -> step-000003")
    final = checkpoints.folder / "step-000003"
    written = {path.relative_to(final) for path in [final, *final.rglob("*")]}
    partial = checkpoints.folder / ".partial-000003"
    assert {
        path.relative_to(partial) for path in events[:named] if partial in (path, *path.parents)
    } == written
    assert {checkpoints.run_folder, checkpoints.run_folder.parent} <= set(events[:named])
    deleted = events.index("step-000001 -> .partial-old-step-000001")
    assert checkpoints.folder in events[named:deleted]
    assert events[deleted:] == [events[deleted], "delete .partial-old-step-000001"]


def test_the_next_save_deletes_what_a_crash_left(checkpoints):
    for name in (".partial-000002", ".partial-000003"):
        (checkpoints.folder / name / "learner").mkdir(parents=True)
    (checkpoints.run_folder / ".export.partial").symlink_to("nowhere")
    save(checkpoints, 3)
    assert names(checkpoints) == ["step-000003"]
    assert exported_step(checkpoints) == "step-000003"
    assert not (checkpoints.run_folder / ".export.partial").is_symlink()


def test_a_crash_while_an_older_one_is_pruned_leaves_no_incomplete_checkpoint(checkpoints, monkeypatch):
    save(checkpoints, 1, 2)

    def die(folder):
        (folder / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as crash:
        crash.setattr("orchestrator.storage.checkpoints.shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 3)
    assert [name for name in names(checkpoints) if not name.startswith(".")] == ["step-000002", "step-000003"]
    save(checkpoints, 4)
    assert names(checkpoints) == ["step-000003", "step-000004"]


def test_export_can_be_linked_to_the_newest_after_a_crash(checkpoints):
    save(checkpoints, 1, 2)
    (checkpoints.run_folder / "export").unlink()
    (checkpoints.run_folder / "export").symlink_to("checkpoints/step-000001/export")
    checkpoints.link_export()
    assert exported_step(checkpoints) == "step-000002"


def test_other_folders_do_not_count_as_checkpoints(checkpoints):
    save(checkpoints, 1)
    (checkpoints.folder / "step-000009.bak").mkdir()
    assert checkpoints.newest()[1].step == 1


def test_a_step_that_is_saved_again_replaces_the_first(checkpoints):
    save(checkpoints, 5)
    checkpoints.save(replace(STATE, step=5, c_ref=-1.0), write_model)
    assert names(checkpoints) == ["step-000005"]
    assert checkpoints.newest()[1].c_ref == -1.0
    assert exported_step(checkpoints) == "step-000005"


def test_the_run_folder_can_be_moved(checkpoints, tmp_path):
    save(checkpoints, 1)
    checkpoints.run_folder.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "export" / "config.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"step": 1}', json.dumps({"unknown": 1}), None])
def test_an_unreadable_state_is_refused_with_its_path(checkpoints, content):
    save(checkpoints, 1)
    path = checkpoints.folder / "step-000001" / "state.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        checkpoints.newest()
    assert f"\n  {path.parent}: state.json is " in str(caught.value)
    assert f"rename {checkpoints.run_folder} to start a new run" in str(caught.value)
