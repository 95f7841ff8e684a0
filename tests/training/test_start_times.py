"""How long a start took, without pools."""

import time
from types import SimpleNamespace

import pytest

from orchestrator.training.start_times import StartTimes


def pools(age):
    return SimpleNamespace(first_token_age=lambda: age)


def test_the_first_token_and_ready_pools_count_from_the_command():
    said = []
    times = StartTimes(time.monotonic() - 20, said.append)
    times.sampled(pools(1.0))
    times.pools_ready()
    times.sampled(pools(None))
    assert (said, times.take_metrics()) == ([], {}), "pools must be ready, and an engine must have sampled"
    times.sampled(pools(2.0))
    assert said == ["pools ready after 20.0 s, first token after 18.0 s"]
    assert times.take_metrics() == {
        "time/start": pytest.approx(18, abs=0.5),
        "time/start_pools": pytest.approx(20, abs=0.5),
    }


def test_a_start_is_measured_once():
    said = []
    times = StartTimes(time.monotonic(), said.append)
    times.pools_ready()
    times.sampled(pools(0.0))
    before = (times.pools_s, times.first_token_s)
    times.pools_ready()  # ranks were restarted
    times.sampled(pools(0.0))
    assert (times.pools_s, times.first_token_s) == before
    assert len(said) == 1
    assert times.take_metrics() != {} == times.take_metrics()
