"""The pool with real Ray actors. Some of them die."""

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectLostError, RayActorError

from orchestrator.errors import PoolError
from orchestrator.pools import events
from orchestrator.pools import pool as pool_module
from orchestrator.pools.budgets import DeathBudget
from orchestrator.pools.events import finished, run_until, run_while
from orchestrator.pools.pool import Pool
from orchestrator.pools.task import PoisonousTask
from orchestrator.pools.worker import WorkerState

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Worker:
    """A worker that has a version of weights, and counts the calls that run in it."""

    def __init__(self):
        self.version, self.loads, self.inside = -1, 0, 0
        self.lock = threading.Lock()

    def ping(self):
        return True

    def load(self, version):
        self.version, self.loads = version, self.loads + 1
        return version

    def work(self, value, seconds=0.0):
        time.sleep(seconds)
        return os.getpid(), value

    def versions(self):
        return self.version, self.loads

    def crowd(self):
        """How many calls ran at the same time as this one, itself included."""
        with self.lock:
            self.inside += 1
            seen = self.inside
        time.sleep(0.1)
        with self.lock:
            self.inside -= 1
        return seen

    def die(self):
        os._exit(1)

    def die_first(self, marker, value):
        """Die, unless a worker has died here before."""
        if not Path(marker).exists():
            Path(marker).touch()
            os._exit(1)
        return os.getpid(), value

    def fail(self, log):
        with Path(log).open("a") as file:
            file.write("called\n")
        raise ValueError("7 is no prompt")

    def read_lost(self):
        """Fail as a call whose argument was lost with a node."""
        raise ObjectLostError("ff" * 28, "", "")

    def lose_or_die(self, folder):
        """The first call fails for lost data; the second one dies after that."""
        try:
            (Path(folder) / "lost").mkdir()
        except FileExistsError:
            time.sleep(1)
            os._exit(1)
        self.read_lost()

    def three(self, value):
        return np.full(10, value), [str(value)], value


class DiesAtFirstStart(Worker):
    def __init__(self, marker):
        if not Path(marker).exists():
            Path(marker).touch()
            os._exit(1)
        super().__init__()


class CannotStart:
    def __init__(self):
        raise FileNotFoundError("no model folder at /models/base")

    def ping(self):
        return True


@pytest.fixture
def make_pool():
    """Pools that are stopped after the test."""
    pools = []

    def make(size, cls=Worker, arguments=(), capacity=2, options=None, **more):
        settings = {"num_cpus": 0, "max_concurrency": 8} | (options or {})
        pools.append(
            Pool(
                "test",
                lambda index: ray.remote(cls).options(**settings).remote(*arguments),
                size,
                capacity,
                **more,
            )
        )
        return pools[-1]

    yield make
    for pool in pools:
        pool.stop()


def values(*pools):
    return [value for _, _, value in finished(*pools)]


def test_every_task_is_done_once_and_the_load_is_even(make_pool):
    pool = make_pool(2, capacity=64)
    pool.wait_ready(60)
    for number in range(10):
        pool.submit("work", number, 0.05)
    done = values(pool)
    assert sorted(number for _, number in done) == list(range(10))
    assert sorted(Counter(pid for pid, _ in done).values()) == [5, 5]
    assert not pool.outstanding
    assert pool.restarts == 0


def test_a_finished_task_carries_its_context_and_refs_and_only_its_last_value(make_pool):
    pool = make_pool(1)
    pool.submit("three", 7, num_returns=3, context="group 0")
    [(owner, task, value)] = finished(pool)
    assert (owner, task.context, value) == (pool, "group 0", 7)
    assert ray.get(task.refs[1]) == ["7"]


def test_tasks_submitted_while_others_finish_join_in_another_pool_too(make_pool):
    first, second = make_pool(1), make_pool(1)
    for number in range(3):
        first.submit("work", number)
    seen = []
    for pool, _, (_, number) in finished(first, second):
        seen.append((pool is first, number))
        if pool is first:
            second.submit("work", number + 10)
    assert sorted(seen) == [(False, 10), (False, 11), (False, 12), (True, 0), (True, 1), (True, 2)]


def test_back_pressure_keeps_a_worker_at_its_capacity(make_pool):
    pool = make_pool(1, capacity=3)
    for _ in range(9):
        pool.submit("crowd")
    assert max(values(pool)) == 3


def test_a_worker_that_dies_is_replaced_and_its_tasks_are_done_elsewhere(make_pool, tmp_path):
    pool = make_pool(2, capacity=2)
    pool.wait_ready(60)
    before = {worker.actor for worker in pool.workers}
    pool.submit("die_first", str(tmp_path / "died"), 0)
    for number in range(1, 8):
        pool.submit("work", number, 0.05)
    assert sorted(number for _, number in values(pool)) == list(range(8))
    assert pool.restarts == 1
    assert len(before & {worker.actor for worker in pool.workers}) == 1


def test_a_worker_that_died_while_idle_is_replaced_when_there_is_work(make_pool):
    pool = make_pool(1)
    pool.wait_ready(60)
    idle = pool.workers[0].actor
    ray.kill(idle)
    with contextlib.suppress(RayActorError):  # a killed actor still answers for a moment
        while True:
            ray.get(idle.ping.remote())
    pool.submit("work", 5)
    assert [number for _, number in values(pool)] == [5]
    assert pool.restarts == 1


def test_a_worker_that_dies_while_it_starts_is_replaced(make_pool, tmp_path):
    pool = make_pool(1, DiesAtFirstStart, (str(tmp_path / "died"),))
    pool.wait_ready(60)
    assert pool.restarts == 1


def test_a_replacement_is_refreshed_once_before_it_gets_work(make_pool, tmp_path):
    refreshed = []

    def refresh(actor):
        refreshed.append(actor)
        return actor.load.remote(3)

    pool = make_pool(1, refresh=refresh)
    pool.submit("die_first", str(tmp_path / "died"), 0)
    pool.submit("versions")
    assert (3, 1) in values(pool)
    assert len(refreshed) == 2  # the first worker and its replacement
    assert pool.workers[0].state is WorkerState.READY


def test_a_worker_whose_refresh_was_overtaken_by_a_broadcast_is_refreshed_again(make_pool):
    """It must not work with older weights."""
    newest = 1
    pool = make_pool(1, refresh=lambda actor: actor.load.remote(newest))
    [ping] = pool.watched()
    pool.settle(ping)
    assert pool.workers[0].state is WorkerState.STALE
    newest = 2
    assert pool.broadcast("load", newest) == []
    pool.submit("versions")
    assert values(pool) == [(2, 2)]


def test_broadcast_reaches_every_ready_worker_and_replaces_one_that_dies_in_it(make_pool, tmp_path):
    pool = make_pool(2, refresh=lambda actor: actor.load.remote(5))
    pool.wait_ready(60)
    assert pool.broadcast("load", 4) == [4, 4]
    survivors = pool.broadcast("die_first", str(tmp_path / "died"), "alive")
    assert [value for _, value in survivors] in (
        ["alive"],
        [],
    )  # the second may have run before the marker was seen
    assert pool.restarts == 2 - len(survivors)
    pool.wait_ready(60)
    assert sorted(pool.broadcast("versions")) == sorted([(4, 2)] * len(survivors) + [(5, 1)] * pool.restarts)


def test_the_watch_knows_broadcasts_that_are_over_before_it_looks(make_pool):
    """Else a worker that is stopped in one would have the long deadline of work that nothing is known of."""
    pool = make_pool(2)
    pool.wait_ready(60)
    assert pool.watch.deadline_s("versions") == 1800
    for _ in range(2):
        pool.broadcast("versions")
    assert pool.watch.deadline_s("versions") == 120


def test_a_broadcast_that_fails_replaces_the_dead_before_it_raises(make_pool, tmp_path):
    """Else the pool would give tasks to a dead worker."""
    pool = make_pool(2)
    pool.wait_ready(60)
    with pytest.raises(ObjectLostError):
        pool.broadcast("lose_or_die", str(tmp_path))
    assert pool.restarts == 1


def test_a_worker_whose_refresh_could_not_begin_is_refreshed_before_it_works(make_pool):
    """The owner of its data has died, and the pool has to wait until the caller has a new one."""
    owner_lives = False

    def refresh(actor):
        if not owner_lives:
            raise RayActorError
        return actor.load.remote(3)

    pool = make_pool(1, refresh=refresh)
    with pytest.raises(RayActorError):
        pool.wait_ready(60)
    owner_lives = True
    pool.submit("versions")
    assert values(pool) == [(3, 1)]
    assert pool.restarts == 0


def test_the_restart_budget_ends_a_pool_that_keeps_dying(make_pool):
    pool = make_pool(1, budget=DeathBudget("workers of the test pool", limit=1), max_attempts=9)
    pool.submit("die")
    with pytest.raises(PoolError, match=r"workers of the test pool died 2 times .*first cause"):
        values(pool)


def test_a_task_that_kills_workers_is_not_tried_again_and_the_others_are_done(make_pool):
    pool = make_pool(1, capacity=4)
    pool.submit("die", labels={"problem": "p7"})
    done = []
    for number in range(6):
        pool.submit("work", number, done=lambda task, value: done.append(value[1]))
    with pytest.raises(PoisonousTask, match=r"workers of the test pool died on die \(problem p7\)"):
        run_until(lambda: False, pool)
    run_until(lambda: len(done) == 6, pool)
    assert sorted(done) == list(range(6))
    assert pool.restarts <= 3


def test_a_worker_that_cannot_start_ends_the_pool_at_once_with_the_cause(make_pool):
    pool = make_pool(1, CannotStart)
    with pytest.raises(
        PoolError, match=r"test worker 0 cannot be started: (.|\n)*no model folder at /models/base"
    ):
        pool.wait_ready(60)
    assert pool.restarts == 0


def test_an_exception_in_a_task_reaches_the_caller_and_is_not_retried(make_pool, tmp_path):
    pool = make_pool(1)
    pool.submit("fail", str(tmp_path / "log"))
    pool.submit("work", 1)
    with pytest.raises(ValueError, match="7 is no prompt"):
        values(pool)
    assert [number for _, number in values(pool)] in ([1], [])  # it may have ended before the failure
    assert (tmp_path / "log").read_text() == "called\n"
    assert pool.restarts == 0


def test_lost_input_restarts_no_worker(make_pool):
    pool = make_pool(1)
    pool.submit("read_lost")
    with pytest.raises(
        PoolError, match="the test pool cannot continue: the data of a task was lost with its node"
    ):
        values(pool)
    assert pool.restarts == 0


def test_lost_input_is_made_again_by_the_tasks_remake(make_pool):
    pool = make_pool(1)
    pool.submit("read_lost", remake=lambda: pool.submit("work", 5))
    pool.submit("work", 6)
    assert sorted(number for _, number in values(pool)) == [5, 6]
    assert pool.restarts == 0


def test_stats_count_queued_and_running_tasks_and_workers(make_pool):
    pool = make_pool(2, capacity=1)
    pool.wait_ready(60)
    for _ in range(5):
        pool.submit("work", 1, 0.2)
    time.sleep(0.1)
    pool.start_tasks()
    stats = pool.stats()
    assert (stats.queued, stats.in_flight, stats.restarts) == (3, 2, 0)
    assert 0.1 <= stats.oldest_queued_s < 1.0
    assert stats.workers == {WorkerState.STARTING: 0, WorkerState.STALE: 0, WorkerState.READY: 2}
    values(pool)
    stats = pool.stats()
    assert (stats.queued, stats.oldest_queued_s, stats.in_flight) == (0, 0.0, 0)


def test_a_pool_without_room_is_an_error_and_not_an_endless_wait(make_pool, monkeypatch):
    monkeypatch.setattr(events, "CHECK_EVERY_S", 0.1)
    monkeypatch.setattr(pool_module, "CHECK_EVERY_S", 0.1)
    pool = make_pool(1, options={"resources": {"absent": 1}}, start_timeout_s=0.3)
    with pytest.raises(PoolError, match=r"did not start within 0.1 s \(test 0: starting\)"):
        pool.wait_ready(0.1)
    pool.submit("work", 1)
    with pytest.raises(PoolError, match=r"has had no ready worker for \d+ s \(test 0: starting\)"):
        values(pool)


def test_tasks_with_a_callback_run_while_the_caller_waits_for_others(make_pool):
    pool = make_pool(1)
    called = []
    for number in range(3):
        pool.submit("work", number, done=lambda task, value: called.append(value[1]))
    pool.submit("work", 3, 1.0)
    assert [number for _, number in values(pool)] == [3]
    assert sorted(called) == [0, 1, 2]
    pool.submit("work", 4, done=lambda task, value: called.append(value[1]))
    run_until(lambda: 4 in called, pool)
    assert not pool.outstanding
    with pytest.raises(RuntimeError, match="no task is left"):
        run_until(lambda: 5 in called, pool)


def test_tasks_run_while_other_calls_are_waited_for(make_pool):
    pool, other = make_pool(1), make_pool(1)
    other.wait_ready(60)
    called = []
    for number in range(4):
        pool.submit("work", number, done=lambda task, value: called.append(value[1]))
    slow = other.workers[0].actor.work.remote("slow", 1.0)
    run_while([slow], pool)
    assert ray.get(slow)[1] == "slow"
    assert sorted(called) == [0, 1, 2, 3]


def test_a_wait_ends_at_the_first_call_that_fails(make_pool, tmp_path):
    """Its peers in a collective would wait for it."""
    pool = make_pool(2)
    pool.wait_ready(60)
    peer = pool.workers[0].actor.work.remote("waits", 30.0)
    failed = pool.workers[1].actor.fail.remote(str(tmp_path / "log"))
    started = time.monotonic()
    run_while([peer, failed], pool)
    assert time.monotonic() - started < 20
