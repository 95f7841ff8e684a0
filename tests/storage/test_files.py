"""Atomic writes, locks and leases."""

import contextlib
import glob
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, LockError
from orchestrator.storage.files import (
    atomically,
    claimed,
    lease_free,
    leased,
    locked,
    without_patterns,
    write_atomically,
)

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.storage.files import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


LEASE = HOLD.replace("claimed", "leased")


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, "old ä")
    with atomically(path) as partial:
        partial.write_text("new")
        assert path.read_text(encoding="utf-8") == "old ä"
    assert path.read_text() == "new"
    write_atomically(path, b"\xff\x00")
    assert path.read_bytes() == b"\xff\x00"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def write_half():
        with atomically(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_does_not_contain_what_a_killed_one_left(tmp_path):
    (tmp_path / ".log.partial").write_text("of a killed process")
    with atomically(tmp_path / "log") as partial, partial.open("a") as file:
        file.write("new")
    assert (tmp_path / "log").read_text() == "new"


def test_a_lock_has_one_holder(tmp_path):
    refused = pytest.raises(LockError, match=r"lock: another process has held this lock for 0 s.*`fuser ")
    with locked(tmp_path / "lock"), refused, locked(tmp_path / "lock", timeout_s=0.0):
        pass
    with locked(tmp_path / "lock", timeout_s=0.0):
        pass


def test_a_lock_waits_for_its_holder(tmp_path):
    order = []
    held = threading.Event()

    def hold():
        with locked(tmp_path / "lock"):
            held.set()
            time.sleep(0.3)
            order.append("first")

    first = threading.Thread(target=hold)
    first.start()
    held.wait()
    with locked(tmp_path / "lock"):
        order.append("second")
    first.join()
    assert order == ["first", "second"]


@contextlib.contextmanager
def process(code, path):
    """A process that holds `path` until the block ends, when it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            yield
        finally:
            holder.kill()


def test_a_killed_process_releases_its_folder(tmp_path):
    words = "another process is training this run; wait for it, stop it, or choose another run.name"
    with process(HOLD, tmp_path), pytest.raises(ConfigError, match=words), claimed(tmp_path):
        pass
    with claimed(tmp_path):
        pass


def test_a_lease_is_shared_and_ends_with_its_process(tmp_path):
    file = tmp_path / "config.json"
    file.touch()
    with process(LEASE, file):
        with leased(file), lease_free(file) as free:
            assert not free
        with lease_free(file) as free:
            assert not free, "the other process still has its lease"
    with lease_free(file) as free:
        assert free


def test_a_file_that_is_being_deleted_cannot_be_leased(tmp_path):
    file = tmp_path / "config.json"
    file.touch()
    with lease_free(file) as free, pytest.raises(FileNotFoundError), leased(file):
        pass
    assert free
    file.unlink()
    with pytest.raises(FileNotFoundError), leased(file):
        pass
    with lease_free(file) as free:
        assert free


@pytest.mark.parametrize("name", ["runs[1]", "a*", "what?", "plain"])
def test_a_folder_whose_name_is_a_pattern_is_read_through_a_link(tmp_path, name):
    folder = tmp_path / name
    for place in (folder, tmp_path / "what1"):
        place.mkdir()
        (place / f"{place.name}.bin").touch()
    found = glob.glob(f"{without_patterns(str(folder))}/*.bin")
    assert [Path(path).name for path in found] == [f"{name}.bin"]
    assert Path(found[0]).resolve().parent == folder
    assert without_patterns(str(folder)) == without_patterns(str(folder)), (
        "one link, however often it is read"
    )
    assert without_patterns("owner/model-[1]") == "owner/model-[1]", "a name on the hub is no path"
