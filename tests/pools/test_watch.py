"""Which workers hang, with a clock that the tests move and workers that only tell numbers."""

from dataclasses import replace

import pytest

from orchestrator.messages.progress import Progress
from orchestrator.pools.watch import MOST_PASSED_S, PATIENCE, Watch, culprits

START = Progress(count=0, beat=0, doing="start", pid=7, node="n")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock):
    return Watch(deadline_s=30, first_deadline_s=200, clock=clock)


class Pool:
    """Workers of which `look` tells progress: some work, and some are stopped or deadlocked."""

    def __init__(self, watch, clock, size=2, work="tasks"):
        self.watch, self.clock = watch, clock
        self.busy = {worker: (work, worker) for worker in range(size)}
        self.told = dict.fromkeys(range(size), START)

    def run(self, seconds, every=5.0, per_look=1, deadlocked=(), stopped=()):
        """Look while time passes. Returns the hangs of the last look."""
        hangs = []
        for _ in range(int(seconds / every)):
            self.clock.now += every
            for worker, told in self.told.items():
                if worker not in stopped:
                    done = 0 if worker in deadlocked else per_look
                    self.told[worker] = replace(told, count=told.count + done, beat=told.beat + 1)
            if hangs := self.watch.look(self.busy, self.told):
                return hangs
        return hangs


def test_a_worker_that_works_never_hangs(watch, clock):
    assert Pool(watch, clock).run(10_000) == []


def test_a_deadlocked_worker_hangs_after_its_deadline_and_not_before(watch, clock):
    pool = Pool(watch, clock)
    assert pool.run(100) == []
    assert watch.deadline_s("tasks") == PATIENCE * 5
    assert pool.run(PATIENCE * 5, deadlocked=[1]) == []
    [hang] = pool.run(10, deadlocked=[1])
    assert (hang.worker, hang.work, hang.silent) == (1, "tasks", False)
    assert hang.seconds > hang.deadline_s == PATIENCE * 5


def test_a_stopped_worker_is_silent(watch, clock):
    pool = Pool(watch, clock)
    pool.run(100)
    [hang] = pool.run(200, stopped=[0])
    assert (hang.worker, hang.silent) == (0, True)


def test_before_times_are_measured_the_first_deadline_holds(watch, clock):
    pool = Pool(watch, clock)
    assert pool.run(200, deadlocked=[0, 1]) == []
    assert len(pool.run(20, deadlocked=[0, 1])) == 2


def test_the_floor_holds_where_work_is_fast(watch, clock):
    pool = Pool(watch, clock)
    pool.run(50, per_look=100)
    assert watch.deadline_s("tasks") == 30, "20 times 0.05 s is less"
    assert pool.run(30, deadlocked=[0, 1]) == []
    assert len(pool.run(5, deadlocked=[0, 1])) == 2


def test_everything_at_a_tenth_of_its_speed_is_merely_slow(watch, clock):
    pool = Pool(watch, clock)
    pool.run(100)
    for _ in range(50):
        assert pool.run(45, deadlocked=[0, 1], stopped=[0]) == [], "nine tenths of the time nothing moves"
        assert pool.run(5) == []


def test_a_driver_that_was_stopped_with_its_workers_blames_none_of_them(watch, clock):
    pool = Pool(watch, clock)
    pool.run(100)
    assert pool.run(3600, every=3600, deadlocked=[0, 1], stopped=[0, 1]) == []
    assert pool.run(100) == []
    assert watch.deadline_s("tasks") <= PATIENCE * 2 * MOST_PASSED_S, "the pause is no measure of the work"


def test_a_worker_without_work_never_hangs_and_its_next_work_starts_anew(watch, clock):
    pool = Pool(watch, clock)
    pool.run(100)
    busy, pool.busy = pool.busy, {}
    assert pool.run(1000, deadlocked=[0, 1]) == []
    pool.busy = busy
    assert pool.run(90, deadlocked=[0, 1]) == []


def test_a_call_without_counts_is_measured_as_a_whole(watch, clock):
    """Ranks count nothing while they save a checkpoint."""
    pool = Pool(watch, clock, size=1)
    for call in range(3):
        pool.busy = {0: ("save", call)}
        pool.run(50, deadlocked=[0])
    pool.busy = {}
    pool.run(5)
    assert watch.deadline_s("save") == PATIENCE * 50
    assert watch.deadline_s("step") == 200, "another work has its own times"


def test_the_time_of_a_hang_is_no_measure_of_the_work(watch, clock):
    """Else the next hang would be found only after 20 times the time of the first."""
    pool = Pool(watch, clock, size=1)
    pool.run(100)
    before = watch.deadline_s("tasks")
    while not pool.run(5, stopped=[0]):
        pass
    pool.busy = {0: ("tasks", "of its replacement")}
    pool.run(5)
    assert watch.deadline_s("tasks") == before


def test_a_worker_that_tells_nothing_is_not_judged(watch, clock):
    pool = Pool(watch, clock)
    pool.told = {}
    assert pool.run(10_000) == []


def test_of_ranks_that_wait_for_each_other_the_stopped_one_is_to_blame(watch, clock):
    pool = Pool(watch, clock, size=3, work="step")
    pool.run(100)
    hangs = pool.run(500, deadlocked=[0, 2], stopped=[1])
    assert [hang.worker for hang in hangs] == [0, 1, 2]
    assert [hang.worker for hang in culprits(hangs)] == [1]


def test_of_ranks_that_all_tell_the_one_that_has_done_least_is_to_blame(watch, clock):
    pool = Pool(watch, clock, size=3, work="step")
    pool.run(100)
    pool.told[2] = replace(pool.told[2], count=3)
    watch.look(pool.busy, pool.told)
    hangs = pool.run(900, deadlocked=[0, 1, 2])
    assert [hang.worker for hang in culprits(hangs)] == [2]


def test_progress_travels_as_bytes():
    assert Progress.from_bytes(START.to_bytes()) == START
