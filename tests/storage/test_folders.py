"""Which command wrote a folder of results."""

import json

import pytest

from orchestrator.errors import ConfigError
from orchestrator.storage.folders import results_of


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
