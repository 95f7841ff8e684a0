"""Slow calls go on aside: what they hold up, how they end, and which processes are left."""

import os
import signal
import threading
from contextlib import closing

import psutil
import pytest

from actors import nursery
from actors.checking import RUN_CHECK, WARM_UP, WARM_UP_RESPONSE
from actors.child import Child, ChildProcess
from actors.deadline import CALLS_ASIDE, CallFailed, ChildDied, DeadlineExceeded, MemoryExceeded
from actors.verification import VerificationWorker
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status
from tests.actors.test_deadline import executor, gone, wait_until

LONG_S = 120.0
MATH = verifier_text("math")


@pytest.fixture
def files(tmp_path):
    """Paths of files that are not there yet; whoever makes one ends the call that waits for it."""
    return [tmp_path / str(number) for number in range(CALLS_ASIDE + 1)]


def processes():
    return {child.pid for child in psutil.Process().children(recursive=True) if not gone(child.pid)}


def test_a_slow_call_holds_up_no_other(files):
    with executor("slowly", LONG_S) as child:
        slow = child.begin(0, "wait_for", str(files[0]))
        assert child.call(0, "nested", 3) == "xxx"
        assert not slow.done()
        files[0].touch()
        assert slow.result(10.0) == str(files[0])
        assert child.restarts == 0


def test_only_a_few_are_aside_and_the_next_one_waits_until_one_of_them_ends(files):
    with executor("wait_for", LONG_S) as child:
        slow = [child.begin(str(path)) for path in files[:CALLS_ASIDE]]
        more = []
        caller = threading.Thread(target=lambda: more.append(child.begin(str(files[-1]))))
        caller.start()
        caller.join(0.5)
        assert caller.is_alive(), "it holds the turn"
        files[0].touch()
        caller.join(10.0)
        assert [one.done() for one in [*slow, *more]] == [True] + [False] * CALLS_ASIDE
        for path in files:
            path.touch()
        assert [one.result(10.0) for one in [*slow, *more]] == list(map(str, files))


@pytest.mark.parametrize(
    ("args", "error", "message", "restarts"),
    [
        (("sleep", 60), DeadlineExceeded, r"longer than 2 s", 1),
        (("allocate", 300), MemoryExceeded, "200 MiB", 1),
        (("exit_with", 3), ChildDied, "exited with status 3 ", 1),
        (("fail",), CallFailed, "RuntimeError: no luck", 0),
    ],
)
def test_a_call_that_is_aside_fails_like_any_other(args, error, message, restarts):
    with executor("slowly", 2.0, memory_mib=200) as child:
        slow = child.begin(0.5, *args)
        assert child.call(0, "nested", 3) == "xxx"
        with pytest.raises(error, match=message):
            slow.result(30.0)
        assert child.restarts == restarts


def test_what_former_calls_have_left_in_memory_does_not_count_aside():
    with executor("slowly", 20.0, memory_mib=200) as child:
        assert child.call(0, "keep", 120) == 1
        assert child.call(0.5, "keep", 120) == 1, "in a new child"
        assert child.restarts == 1


def test_a_deadline_holds_although_the_caller_is_busy(files):
    with executor("wait_for", LONG_S) as child:
        slow = child.begin(str(files[0]), timeout_s=0.5)
        wait_until(slow.done)
        assert isinstance(slow.exception(), DeadlineExceeded)


def test_no_child_is_left(files):
    before = processes()
    with executor("wait_for", LONG_S) as child:
        idle = len(processes() - before)
        slow = [child.begin(str(path)) for path in files[:CALLS_ASIDE]]
        assert len(processes() - before) == idle + CALLS_ASIDE - 1, "the next call starts its child"
        files[0].touch()
        slow[0].result(10.0)
        assert child.call(str(files[0])) == str(files[0])
        assert len(processes() - before) == idle + 1
    with pytest.raises(ChildDied):
        slow[1].result(10.0)
    wait_until(lambda: processes() <= before)


def test_a_child_that_is_aside_has_a_lower_priority(files):
    with executor("wait_for", LONG_S) as child:
        pid = child._child.pid
        slow = child.begin(str(files[0]))
        own = os.getpriority(os.PRIO_PROCESS, 0)
        wait_until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == min(19, own + 10))
        files[0].touch()
        slow.result(10.0)
        child.call(str(files[0]))
        assert os.getpriority(os.PRIO_PROCESS, child._child.pid) == own


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_process_that_is_copied_is_replaced_when_it_dies_or_is_stuck(number, monkeypatch):
    monkeypatch.setattr(nursery, "FORK_TIMEOUT_S", 2.0)
    with executor("exit_with", LONG_S) as child:
        os.kill(child._nursery._source.pid, number)
        with pytest.raises(ChildDied):
            child.call(3)
        with pytest.raises(ChildDied, match="exited with status 4 "):
            child.call(4)


@pytest.mark.parametrize(
    "function",
    [
        "threaded_function:echo",
        "deadline_functions:ask_helper",
        "deadline_functions:use_connection",
        "deadline_functions:use_file",
    ],
)
def test_what_copies_would_lack_or_share_is_not_copied(function):
    with closing(nursery.Nursery(function, ("5",), None)) as not_copied:
        child = not_copied.child()
        assert isinstance(child, ChildProcess)
        child.send(("5",), 10.0)
        assert child.reply(10.0) == ("returned", "5")
        child.kill()


def test_a_check_of_mathematics_is_copied():
    with closing(nursery.Nursery(RUN_CHECK, (MATH, WARM_UP_RESPONSE, WARM_UP), 2048)) as copied:
        child = copied.child()
        assert not isinstance(child, ChildProcess)
        child.kill()


def test_without_room_for_another_thread_a_slow_call_holds_up_the_others_and_is_right(files, monkeypatch):
    def no_room(_):
        raise RuntimeError("can't start new thread")

    with executor("slowly", LONG_S) as child:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_room)
            assert child.call(0.5, "nested", 3) == "xxx"
        slow = child.begin(0, "wait_for", str(files[0]))
        assert child.call(0, "nested", 2) == "xx"
        files[0].touch()
        assert slow.result(10.0) == str(files[0])


def test_a_call_whose_nursery_dies_is_tried_again(files):
    with executor("slowly", LONG_S) as child:
        slow = child.begin(0, "wait_for", str(files[0]))
        os.kill(child._nursery._source.pid, signal.SIGKILL)
        assert child.call(0, "nested", 3) == "xxx"  # a new nursery, which ends the copies of the old one
        files[0].touch()
        assert slow.result(60.0) == str(files[0])


def test_a_copy_that_does_not_start_ends_no_other(files, monkeypatch):
    with executor("slowly", LONG_S) as child:
        pid = child._child.pid
        slow = child.begin(0, "wait_for", str(files[0]))
        replies_within, failed = Child.replies_within, []

        def not_the_first(copy, timeout_s):
            if not isinstance(copy, ChildProcess) and copy.pid != pid and not failed:
                failed.append(copy)
                return False
            return replies_within(copy, timeout_s)

        monkeypatch.setattr(Child, "replies_within", not_the_first)
        assert child.call(0, "nested", 3) == "xxx"
        monkeypatch.undo()
        assert len(failed) == 1
        files[0].touch()
        assert slow.result(10.0) == str(files[0])
        assert child.restarts == 0


def test_a_group_gets_its_verdicts_while_a_check_of_another_one_hangs(files):
    hangs, path = files[0], str(files[0])
    problem = Problem.from_text("p", "?", "b")
    with closing(VerificationWorker("deadline_functions:wait_if_path", LONG_S)) as worker:
        first = []
        group = threading.Thread(
            target=lambda: first.extend(worker.verify([path, "a", "b"], [True] * 3, problem))
        )
        group.start()
        right, wrong = worker.verify(["b", "c"], [True] * 2, problem)
        assert [right.status, wrong.status] == [Status.CORRECT, Status.WRONG]
        assert group.is_alive()
        hangs.touch()
        group.join(10.0)
    assert [verdict.status for verdict in first] == [Status.WRONG, Status.WRONG, Status.CORRECT]
    assert first[0].seconds > first[1].seconds, "each has its own time"
