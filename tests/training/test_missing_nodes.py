"""A run that is started again waits for a node that its cluster lacks: a real cluster, which gets one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.nodes import RayCluster
from orchestrator.config.schema import dump_config
from tests.settings import configure

PLACE = """
import sys
from orchestrator.config.training import RunConfig, load_config
from orchestrator.errors import ConfigError
from orchestrator.training.context import standalone
from orchestrator.training.missing_nodes import refuse_what_has_no_room

try:
    refuse_what_has_no_room(load_config(sys.argv[1], sys.argv[2:], RunConfig), standalone())
except ConfigError as error:
    print("refused:", error)
else:
    print("room")
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster()
    try:
        cluster.start(cpus=4)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def place(cluster, tmp_path):
    """Start to place a run, with these settings beside those that it was saved with."""
    config = configure(
        run={"dir": str(tmp_path / "runs"), "node_wait_s": 60.0},
        verification={"resources": {"checker": 1.0}},
    )
    (config.folder / "checkpoints").mkdir(parents=True)
    (config.folder / "config.yaml").write_text(dump_config(config))

    def start(*changes: str, file: Path = config.folder / "config.yaml") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PLACE, str(file), *changes],
            env=cluster.environment | {"RAY_ADDRESS": cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_other_settings_and_a_node_that_does_not_come_are_refused(place, tmp_path):
    new = tmp_path / "new.yaml"
    new.write_text(dump_config(configure(verification={"resources": {"checker": 1.0}})))
    beside = [place(file=new), place("learning.num_ranks=2"), place("run.node_wait_s=1")]
    for process, waits in zip(beside, (False, False, True), strict=True):
        printed, told = process.communicate(timeout=120)
        assert printed.startswith("refused: the pools need 1 unit of the resource checker"), told
        assert ("waiting for it" in told) is waits


def test_the_same_command_waits_for_the_node(cluster, place):
    process = place()
    line = next(line for line in process.stderr if "waiting" in line)
    assert "the pools need 1 unit of the resource checker, but the cluster has 0. The run had room" in line
    assert "at most 60 s (run.node_wait_s)" in line
    cluster.add_node(1, {"checker": 1})
    printed, told = process.communicate(timeout=120)
    assert printed == "room\n", told
