"""Folders of results: those that cannot be made or written, and which command wrote one."""

import json

import pytest

from orchestrator.errors import ConfigError
from orchestrator.storage.folders import make_folder, refuse_unusable_folder, results_of


@pytest.mark.parametrize(
    ("tree", "kind"),
    [({"trials": [], "best": None}, "sweep"), ({"sets": []}, "evaluation"), ({"other": 1}, None), ([], None)],
)
def test_the_keys_tell_a_sweep_from_an_evaluation(tmp_path, tree, kind):
    (tmp_path / "results.json").write_text(json.dumps(tree))
    assert results_of(tmp_path) == (None if kind is None else (kind, tree))


def test_a_folder_without_results_is_neither(tmp_path):
    assert results_of(tmp_path) is None


def test_results_that_are_no_json_are_refused_with_their_path(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(
        ConfigError, match=r"results\.json: cannot be read .* Run the command that wrote it again"
    ):
        results_of(tmp_path)


@pytest.fixture
def places(tmp_path):
    """A folder with a file, a link to itself and a link to nothing."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(
    "folder",
    [
        "file",
        "file/runs/a",
        "loop/a",
        "lost",
        "lost/a",
        "x" * 256,
        "ü" * 128 + "/a",
        f"{'d' * 100}/" * 45,
        "/proc/runs/a",
        "/sys/runs",
        "/dev/null/a",
        "/dev/null",
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_before_and_at_its_making(places, folder):
    before = sorted(places.iterdir())
    for use in (refuse_unusable_folder, make_folder):
        with pytest.raises(ConfigError, match=r"cannot be made or written \(.+\)\. Choose another run\.dir$"):
            use(places / folder, "run.dir")
        assert sorted(places.iterdir()) == before


@pytest.mark.parametrize("folder", ["a/b/c", "spaces and #%20?;&'\"é", "-leading"])
def test_any_other_folder_is_made_only_when_asked(places, folder):
    refuse_unusable_folder(places / folder, "run.dir")
    assert not (places / folder).exists()
    make_folder(places / folder, "run.dir")
    refuse_unusable_folder(places / folder, "run.dir")
    assert list((places / folder).iterdir()) == []
