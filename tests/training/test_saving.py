"""Which checkpoint a run restores when ranks or the URL find damage that the folder does not show."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.remote import RemoteStorage, fetch_checkpoint, place_of
from orchestrator.storage.shards import ShardFiles
from orchestrator.training.run import fetch_newer
from orchestrator.training.saving import Saver, trunk_end
from tests.settings import configure

STATE = TrainingState(1, 1, {"position": 3}, -9.5, None, 1.5, None)


class FakePools:
    """Ranks on another node, which see files that the driver does not: each checkpoint's problem there."""

    def __init__(self, problems):
        self.problems = problems
        self.calls = []

    def on_all_ranks(self, method, *arguments):
        step = Path(arguments[0]).name if method != "load" else Path(arguments[0]).parent.name
        self.calls.append((method, step))
        return [None, self.problems.get(step) if method == "verify" else None]


def write(folder):
    for name in ("learner/random_state_0.pt", "learner/zero3/zero_pp_rank_0_model.pt", "export/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of {folder.name}")


@pytest.fixture
def config(tmp_path):
    return configure(run={"dir": str(tmp_path), "remote": f"file://{tmp_path}/remote"})


@pytest.fixture
def uploaded(config):
    """Checkpoints 1 to 3 at the URL, and the storage."""
    remote = RemoteStorage(config.run.remote, config.run.name)
    checkpoints = Checkpoints(config.folder, keep=3)
    for step in (1, 2, 3):
        state = replace(STATE, step=step)

        def upload(folder, state=state):
            def send(place):
                ShardFiles(0, 1, config.run.name, config.run.remote).upload(folder, place)

            remote.save(state, 3, send, (folder / "state.json").read_text())

        checkpoints.save(state, write, upload)
    return remote


def test_damage_that_only_a_rank_sees_makes_the_checkpoint_before_it_count(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(replace(STATE, step=step), write)
    pools = FakePools({"step-000003": "learner/a.pt is missing", "step-000002": "learner/b.pt is missing"})
    saver = Saver(configure(), None, pools, checkpoints, has_score=False)
    folder, state = saver.load_newest()
    assert (folder.name, state.step) == ("step-000001", 1)
    verified = [("verify", f"step-00000{step}") for step in (3, 2, 1)]
    assert pools.calls == [*verified, ("load", "step-000001")]
    assert checkpoints.take_notes() == [
        f"{checkpoints.folder}/step-000002 is damaged: learner/b.pt is missing",
        f"{checkpoints.folder}/step-000003 is damaged: learner/a.pt is missing",
    ]
    pools.problems["step-000001"] = "learner/c.pt is missing"
    with pytest.raises(ConfigError, match="no checkpoint is whole; nothing was changed or deleted"):
        saver.load_newest()


def test_a_damaged_copy_at_the_url_is_not_fetched_but_the_one_before_it(config, uploaded, tmp_path):
    far = tmp_path / "remote" / config.run.name
    (far / place_of(3) / "export" / "config.json").write_text("export/config.json of .partial-000004")
    (far / place_of(2) / "learner" / "random_state_0.pt").unlink()
    config.folder.rename(tmp_path / "lost")
    checkpoints = Checkpoints(config.folder, keep=3, elsewhere=True)
    fetch_newer(config, checkpoints, uploaded)
    assert checkpoints.newest()[1].step == 1
    (note,) = checkpoints.take_notes()
    assert note.startswith(
        f"{uploaded.shown}/checkpoints/step-000003 is damaged: export/config.json has other"
    )
    (far / place_of(1) / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"(?s)nothing was deleted.*step-000001: state.json is not a state"):
        uploaded.newest(before=3)


def test_a_rank_compares_what_it_downloads(config, uploaded, tmp_path):
    far = tmp_path / "remote" / config.run.name
    shard = far / place_of(3) / "learner" / "zero3" / "zero_pp_rank_0_model.pt"
    shard.write_text(shard.read_text().replace("model", "mode1"))
    state, sums = uploaded.newest()
    files = ShardFiles(0, 1, config.run.name, config.run.remote)
    files.fetch(tmp_path / "elsewhere" / "step-000003", state, "10.0.0.2")
    assert files.problem(tmp_path / "elsewhere" / "step-000003", sums, 1) == (
        "learner/zero3/zero_pp_rank_0_model.pt has other content than when it was written"
    )


def test_a_fetched_checkpoint_keeps_the_checksums_of_shards_that_lie_elsewhere(config, uploaded, tmp_path):
    other = Checkpoints(tmp_path / "other", keep=1, elsewhere=True)
    state, sums = uploaded.newest()
    fetch_checkpoint(other, uploaded, state, sums)
    folder, restored = other.newest()
    assert restored.is_same(state)
    assert other.checksums(folder) == sums
    assert not (folder / "learner").exists()
    with pytest.raises(ConfigError, match=r"learner/random_state_0\.pt is missing"):
        Checkpoints(tmp_path / "other", keep=1).newest()


def test_a_damaged_trunk_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path / "trunk", keep=1)
    checkpoints.save(replace(STATE, step=4), write)
    assert trunk_end(tmp_path / "trunk", 4)[1].step == 4
    (checkpoints.folder / "step-000004" / "export" / "config.json").write_text("")
    with pytest.raises(RunError, match=r"(?s)config\.json has 0 bytes, and had .* the sweep trains it again"):
        trunk_end(tmp_path / "trunk", 4)
