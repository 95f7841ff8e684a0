"""Calls in a child process: deadlines, deaths of the child and of its parent, and failures."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from actors.child import Child
from actors.child_main import WHOLE_BYTES, load_function
from actors.deadline import CallFailed, ChildDied, DeadlineExceeded, DeadlineExecutor, MemoryExceeded
from orchestrator.errors import ConfigError


def executor(function, timeout_s, **options):
    return closing(DeadlineExecutor(f"deadline_functions:{function}", timeout_s, **options))


def wait_until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.01)


def gone(pid):
    """True once the process has ended, collected by its parent or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_returns_what_the_function_returns_even_when_it_is_large():
    with executor("nested", 10.0) as child:
        assert child.call(3) == "xxx"
        assert len(child.call(5_000_000)) == 5_000_000
        assert child.restarts == 0


def test_deadline_kills_a_sleep_and_the_next_call_works():
    with executor("sleep", 0.3) as child:
        with pytest.raises(DeadlineExceeded, match=r"0\.3 s"):
            child.call(60)
        assert child.call(0.0) == 0.0
        assert child.restarts == 1


def test_deadline_kills_long_work_in_c():
    with executor("big_power", 0.3) as child:
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            child.call()
        assert time.monotonic() - start < 5


def test_deadline_counts_from_the_start_of_the_call_not_from_queueing():
    results = []
    with executor("sleep", 0.6) as child:
        callers = [threading.Thread(target=lambda: results.append(child.call(0.4))) for _ in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert results == [0.4] * 5  # the last one waited 1.6 s for its turn


def test_warm_up_is_outside_the_deadline_and_its_failure_is_ignored():
    with executor("sleep", 0.3, warm_up=(0.6,)) as child:
        assert child.call(0.0) == 0.0
        assert child.restarts == 0
    with executor("fail", 0.3, warm_up=()) as child, pytest.raises(CallFailed):
        child.call()


def test_a_call_whose_process_is_stopped_is_tried_again(caplog):
    with executor("nested", 2.0) as child:
        pid = child._child.pid
        os.kill(pid, signal.SIGSTOP)
        assert child.call(3) == "xxx"
        assert child.restarts == 1
    assert f"process {pid} was stopped; another one does its call again" in caplog.text


def test_a_call_that_gets_no_core_is_tried_again():
    """A process that is stopped most of the time, as on a machine that is too busy."""
    with executor("spin_once", 3.0) as child:
        pid = child._child.pid
        ended = threading.Event()

        def hold_up():
            with suppress(ProcessLookupError):  # it is replaced
                while not ended.is_set():
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(0.095)
                    os.kill(pid, signal.SIGCONT)
                    time.sleep(0.005)

        slow = threading.Thread(target=hold_up)
        slow.start()
        try:
            assert child.call(0.5) == "done"
            assert child.restarts == 1
        finally:
            ended.set()
            slow.join()


@pytest.mark.parametrize(
    ("name", "trials"), [("spin_once", 2), ("spin_in_a_thread", 2), ("spin_in_a_process", 2), ("sleep", 1)]
)
def test_who_wants_a_core_and_got_less_than_half_of_one_is_tried_again(name, trials, monkeypatch):
    """As if the call had been sent a minute ago: a machine that is so busy would be needed else."""
    mark = Child.mark

    def mark_a_minute_ago(child):
        mark(child)
        child._marks = [(since - 60.0, used_s) for since, used_s in child._marks]

    monkeypatch.setattr(Child, "mark", mark_a_minute_ago)
    with executor(name, 1.0) as child:
        with pytest.raises(DeadlineExceeded):
            child.call(60)
        assert child.restarts == trials


def test_arguments_that_a_stopped_process_does_not_read_are_sent_again():
    with executor("echo_size", 2.0) as child:
        os.kill(child._child.pid, signal.SIGSTOP)
        assert child.call(bytes(2**20)) == 2**20
        assert child.restarts == 1


def test_a_reply_that_stops_half_way_is_late():
    with executor("stop_while_it_replies", 1.0) as child, pytest.raises(DeadlineExceeded):
        child.call()


def test_a_watchdog_that_fires_as_the_transfer_ends_costs_the_next_call_nothing(monkeypatch):
    transfer = Child._in_time

    @contextmanager
    def fires_at_the_end(child, size, timeout_s):
        with transfer(child, size, timeout_s):
            yield
        if size > WHOLE_BYTES:
            child._stop_transfer()

    with executor("nested", 20.0) as child:
        monkeypatch.setattr(Child, "_in_time", fires_at_the_end)
        assert child.call(100_000) == "x" * 100_000
        assert child.call(3) == "xxx"


def test_a_call_that_ends_with_an_exception_here_leaves_its_reply_to_nobody(monkeypatch):
    with executor("sleep", 20.0) as child:
        with monkeypatch.context() as patch:
            patch.setattr(Child, "reply", interrupted)
            with pytest.raises(KeyboardInterrupt):
                child.call(0.05)
        assert child.call(0.0) == 0.0


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_machine_without_room_for_a_process_is_named_and_nothing_leaks(monkeypatch):
    def no_room(*_, **__):
        raise BlockingIOError("Resource temporarily unavailable")

    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", no_room)
        with pytest.raises(ConfigError, match=r"no process can be started.*ulimit -u"):
            executor("sleep", 1.0).__enter__()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_end_of_a_child_shows_although_what_it_started_lives():
    with executor("exit_beside_a_sleeper", 1.0) as child, pytest.raises(ChildDied, match="with status 3 "):
        child.call(3)


def test_what_a_child_starts_has_none_of_its_connections_open():
    with executor("inherited", 20.0) as child:
        assert child.call() == []


def test_a_signal_without_a_name_is_named_by_its_number():
    with executor("kill_itself", 20.0) as child:
        with pytest.raises(ChildDied, match="killed by signal 40 "):
            child.call(40)
        with pytest.raises(ChildDied, match="killed by SIGTERM "):
            child.call(signal.SIGTERM)


def test_no_memory_for_the_reply_is_a_lack_of_memory():
    with executor("fill", 60.0, memory_mib=50) as child, pytest.raises(MemoryExceeded):
        child.call()


def test_no_memory_for_the_arguments_because_of_former_calls_is_tried_again():
    with executor("keep", 20.0, memory_mib=200) as child:
        assert child.call(190) == 1
        assert child.call(0, bytes(2**24)) == 1, "in a new child"


def test_a_call_that_takes_too_much_memory_fails_as_such_and_the_next_one_works():
    with executor("allocate", 20.0, memory_mib=200) as child:
        with pytest.raises(MemoryExceeded, match="200 MiB"):
            child.call(300)
        assert child.call(100) == 100 * 2**20
        assert child.restarts == 1


def test_what_former_calls_have_left_in_memory_does_not_count():
    with executor("keep", 20.0, memory_mib=200) as child:
        assert [child.call(120) for _ in range(3)] == [1, 1, 1]
        assert child.restarts == 2


def test_math_verify_swallows_no_lack_of_memory():
    with executor("verify_without_memory", 60.0) as child, pytest.raises(MemoryExceeded):
        child.call()


def test_deadline_also_kills_what_the_function_started(tmp_path):
    pid_file = tmp_path / "pid"
    with executor("leave_a_sleeper", 0.5) as child, pytest.raises(DeadlineExceeded):
        child.call(str(pid_file))
    wait_until(lambda: gone(int(pid_file.read_text())))


def test_a_child_that_exits_is_reported_by_its_status_and_replaced():
    with executor("exit_with", 10.0) as child:
        for status in (3, 0):
            with pytest.raises(ChildDied, match=f"exited with status {status} "):
                child.call(status)
        assert child.restarts == 2


def test_a_child_that_dies_between_two_calls_costs_no_call():
    with executor("sleep", 10.0) as child:
        os.kill(child._child.pid, signal.SIGSEGV)
        wait_until(child._child.has_died)
        assert child.call(0.0) == 0.0
        assert child.restarts == 1


def test_a_child_killed_during_the_call_names_the_signal():
    with executor("sleep", 10.0) as child:
        timer = threading.Timer(0.3, os.kill, (child._child.pid, signal.SIGSEGV))
        timer.start()
        with pytest.raises(ChildDied, match="SIGSEGV"):
            child.call(60)


@pytest.mark.parametrize(
    ("function", "message"), [("fail", "RuntimeError: no luck"), ("unpicklable", "pickle")]
)
def test_a_function_that_raises_gives_the_traceback_and_its_child_stays(function, message):
    with executor(function, 10.0) as child:
        for _ in range(2):
            with pytest.raises(CallFailed, match=message):
                child.call()
        assert child.restarts == 0


def test_the_child_dies_with_its_parent_even_inside_c_code(tmp_path):
    pid_file = tmp_path / "pid"
    script = (
        "from actors.deadline import DeadlineExecutor\n"
        f"DeadlineExecutor('deadline_functions:write_pid_then_big_power', 60.0).call({str(pid_file)!r})"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path})
    written = tmp_path / "pid.done"
    wait_until(written.exists, timeout_s=30)
    child_pid = int(written.read_text())
    assert not gone(child_pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: gone(child_pid))


@pytest.mark.parametrize(
    ("import_path", "message"),
    [
        ("no_colon", "package.module:function"),
        ("no_such_module_anywhere:f", "'no_such_module_anywhere' cannot be imported"),
        ("deadline_functions:missing", r"deadline_functions\.py\) has no such name"),
        ("deadline_functions:NOT_A_FUNCTION", "has a int there, not a function"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_refused_at_the_start(import_path, message):
    with pytest.raises(ConfigError, match=message):
        load_function(import_path)
    with pytest.raises(ConfigError, match=message):
        DeadlineExecutor(import_path, 1.0)


def test_a_child_that_dies_while_it_starts_is_reported():
    with pytest.raises(ConfigError, match="exited with status 7"):
        DeadlineExecutor("deadline_functions:exit_with", 1.0, warm_up=(7,))
