"""What is read of a process that hangs, and its end, on real processes that bear the name of an actor."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from orchestrator.pools.hung import _examine, end_actors
from orchestrator.pools.ranks import start_ranks
from orchestrator.pools.watch import Watch

# Workers cannot import a module of the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

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


class StopsOnce:
    """A learner rank whose process is stopped in its first start. A fake: a real one takes longer."""

    def __init__(self, settings, rank, marker):
        from actors.progress import report_progress

        self.marker = Path(marker)
        report_progress()

    def open_store(self):
        return "127.0.0.1", 1

    def setup(self, address, port):
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    def ping(self):
        return 0

    def pid(self):
        return os.getpid()


def test_a_rank_that_is_stopped_while_it_starts_is_named_and_started_again(ray_cluster, tmp_path):
    notes = []
    stacks = tmp_path / "stacks"
    (rank,) = start_ranks(
        SimpleNamespace(num_ranks=1),
        lambda cls, rank, *arguments: ray.remote(cls).options(num_cpus=0).remote(*arguments, tmp_path / "m"),
        worker=StopsOnce,
        note=notes.append,
        watch=Watch(deadline_s=1.0, first_deadline_s=4.0, stacks=stacks, together=True),
    )
    assert ray.get(rank.ping.remote(), timeout=30) == 0
    assert "learner rank 0 made no progress" in notes[0]
    assert "T (stopped)" in notes[0]


def test_an_actor_that_rays_message_does_not_reach_is_ended(ray_cluster, monkeypatch):
    """As where Ray could not connect to a stopped rank. A fake: its message is lost on each machine."""
    actors = [ray.remote(StopsOnce).options(num_cpus=0).remote(None, 0, "") for _ in range(2)]
    pids = [ray.get(actor.pid.remote(), timeout=60) for actor in actors]
    os.kill(pids[0], signal.SIGSTOP)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    end_actors(actors)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_another_process_that_has_the_number_now_is_left_alone(started):
    process = started("sleep")
    assert _examine(process.pid).state == ""
    assert process.poll() is None


def test_a_process_that_has_ended_is_no_error(started):
    process = started("ray::RolloutWorker")
    process.kill()
    process.wait()
    assert _examine(process.pid).state == ""
