"""Many `async` checks in one child: cancellation, a kill that spares the others, and the end of the child."""

import time
from concurrent.futures import wait
from contextlib import closing

import pytest

from actors.checking import RUN_CHECK
from actors.concurrent import ConcurrentExecutor
from actors.deadline import CallFailed, ChildDied, DeadlineExceeded
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status

TEXT = verifier_text("async_verifiers:obey")
PROBLEM = Problem.from_text("p", "?", None)


@pytest.fixture
def executor():
    with closing(ConcurrentExecutor(RUN_CHECK, in_flight=32)) as executor:
        yield executor


def submitted(executor, *responses, timeout_s=1.0):
    return [executor.submit(TEXT, response, PROBLEM, timeout_s=timeout_s) for response in responses]


def test_checks_wait_at_the_same_time(executor):
    submitted(executor, "warm")[0].result(30)
    started = time.monotonic()
    results = [future.result(30) for future in submitted(executor, *["sleep 1"] * 30, timeout_s=20)]
    assert {verdict.status for verdict in results} == {Status.CORRECT}
    assert time.monotonic() - started < 15, "one after another they would take 30 s"


def test_a_check_past_its_deadline_is_cancelled_alone(executor):
    slow, fast = submitted(executor, "sleep 60", "sleep 0.1", timeout_s=1.0)
    assert fast.result(30).status is Status.CORRECT
    with pytest.raises(DeadlineExceeded, match="took longer than 1 s"):
        slow.result(30)
    assert executor.restarts == 0
    assert submitted(executor, "x")[0].result(30).status is Status.CORRECT


@pytest.mark.parametrize(
    ("guilty", "error", "what"),
    [
        ("block", DeadlineExceeded, "took longer than 1 s"),
        ("deaf", DeadlineExceeded, "took longer than 1 s"),
        ("die", ChildDied, "exited with status 3"),
    ],
)
def test_the_child_is_replaced_and_the_other_checks_are_tried_again(executor, guilty, error, what):
    others = submitted(executor, "sleep 0.5", "a", "sleep 0.2", timeout_s=20)
    (bad,) = submitted(executor, guilty)
    after = submitted(executor, "b", timeout_s=20)
    assert [future.result(60).status for future in others + after] == [Status.CORRECT] * 4
    with pytest.raises(error, match=what):
        bad.result(60)
    assert executor.restarts >= 1


def test_an_error_of_a_check_is_its_own(executor):
    bad, good = submitted(executor, "raise", "x")
    with pytest.raises(CallFailed, match="RuntimeError: no luck"):
        bad.result(30)
    assert good.result(30).status is Status.CORRECT
    lambda_ = executor.submit(lambda: None, timeout_s=1.0)
    with pytest.raises(CallFailed, match="cannot be sent"):
        lambda_.result(30)


def test_a_closed_executor_ends_its_checks():
    executor = ConcurrentExecutor(RUN_CHECK, in_flight=2)
    futures = submitted(executor, "sleep 60", "sleep 60", "sleep 60", timeout_s=100)
    time.sleep(0.5)
    process = executor._child.process
    executor.close()
    assert len(wait(futures, 5).done) == 3
    assert process.poll() is not None
    with pytest.raises(RuntimeError, match="closed"):
        submitted(executor, "x")
