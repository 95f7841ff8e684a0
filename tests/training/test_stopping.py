"""A clean stop: what a signal interrupts, and what it does not."""

import os
import signal
import threading
import time

import pytest
import ray

from orchestrator.training.stopping import Stop, StopRequested


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs between two of our instructions


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_only_what_may_be_given_up_is_interrupted(number) -> None:
    said: list[str] = []
    stop = Stop(said.append)
    done: list[str] = []
    with stop.on_signals():
        ask(number)
        done.append("a step's learning, to its end")
        with pytest.raises(StopRequested), stop.interruptible():
            done.append("the next step's samples")
    assert done == ["a step's learning, to its end"]
    assert said == ["stopping after a checkpoint; a second signal stops at once"]


def test_waiting_for_samples_is_given_up_at_once() -> None:
    stop = Stop(lambda message: None)
    threading.Timer(0.2, ask).start()
    began = time.monotonic()
    with pytest.raises(StopRequested), stop.on_signals(), stop.interruptible():
        time.sleep(10)
    assert time.monotonic() - began < 5


def test_a_wait_in_ray_is_given_up_too(ray_cluster) -> None:
    never = ray.remote(num_cpus=0)(lambda: time.sleep(60)).remote()
    stop = Stop(lambda message: None)
    threading.Timer(0.5, ask).start()
    with pytest.raises(StopRequested), stop.on_signals(), stop.interruptible():
        ray.wait([never], timeout=30)
    ray.cancel(never, force=True)


def test_a_second_signal_ends_the_process_even_while_a_checkpoint_is_written() -> None:
    stop = Stop(lambda message: None)
    with stop.on_signals():
        ask()
        with pytest.raises(KeyboardInterrupt) as caught:
            ask()
    assert not isinstance(caught.value, StopRequested)


@pytest.mark.parametrize("error", [BrokenPipeError(), SystemExit(1), RuntimeError("reentrant call")])
def test_a_terminal_that_is_gone_takes_no_checkpoint_with_it(error) -> None:
    def say(message: str) -> None:
        raise error

    stop = Stop(say)
    with stop.on_signals():
        ask()
        with pytest.raises(StopRequested), stop.interruptible():
            pass


def test_it_is_no_failure_that_somebody_may_catch() -> None:
    assert not issubclass(StopRequested, Exception)


def test_the_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop().on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_the_signals_are_the_callers() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with Stop().on_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
