"""What is read of a process that hangs, and its end, on real processes that bear the name of an actor."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from orchestrator.pools.hung import _examine

SLEEP = shutil.which("sleep")


@pytest.fixture
def started(tmp_path):
    """Starts a process under a name; whatever is left is killed."""
    processes = []

    def start(name):
        log = (tmp_path / "worker.log").open("w")
        log.write("".join(f"line {number}\n" for number in range(100)))
        log.flush()
        processes.append(subprocess.Popen([name, "60"], executable=SLEEP, stdout=log, stderr=log))
        deadline = time.monotonic() + 10
        while not Path(f"/proc/{processes[-1].pid}/cmdline").read_bytes().startswith(name.encode()):
            assert time.monotonic() < deadline
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_stopped_actor_ends_and_its_state_and_the_end_of_its_log_are_known(started):
    process = started("ray::RolloutWorker")
    process.send_signal(signal.SIGSTOP)
    while "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text():
        time.sleep(0.01)
    remains = _examine(process.pid)
    assert process.wait(10) == -signal.SIGKILL
    assert remains.state == "T (stopped)"
    assert remains.log.splitlines() == [f"line {number}" for number in range(80, 100)]


def test_another_process_that_has_the_number_now_is_left_alone(started):
    process = started("sleep")
    assert _examine(process.pid).state == ""
    assert process.poll() is None


def test_a_process_that_has_ended_is_no_error(started):
    process = started("ray::RolloutWorker")
    process.kill()
    process.wait()
    assert _examine(process.pid).state == ""
