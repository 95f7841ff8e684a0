"""`kill -9` of the driver at random moments changes no weight: a few of the kills of benchmarks/kills.py."""

import json
from pathlib import Path

import pytest

from benchmarks import kills


@pytest.mark.long
def test_a_killed_driver_s_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    assert kills.main(["--kills", "4", "--seed", "1", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kills"] == 4
    assert [run["left_behind"] for run in found["runs"]] == [[]] * len(found["runs"])
