"""What a step and a pool become as live metrics; that they reach Prometheus is in
end_to_end/test_dashboards.py.
"""

import math
import threading
import time
from types import SimpleNamespace

import pytest
import ray

from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.pool import Pool, PoolStats
from orchestrator.pools.worker import WorkerState
from orchestrator.training import live_metrics
from orchestrator.training.live_metrics import METRICS, LiveMetrics, of_pool, of_step
from tests.settings import configure

STEP = {
    "time/rollout": 4.0,
    "time/verify": 0.5,
    "time/learn": 3.0,
    "time/sync": 0.5,
    "time/step": 9.0,
    "train/accuracy": 0.25,
    "throughput/rollout_tokens_per_s": 800.0,
    "self_reward/score_wrong": math.nan,
}


def test_a_step_becomes_gauges_and_what_no_phase_explains_is_other():
    values = of_step(7, STEP)
    phases = {
        tags[0][1]: value for (name, tags), value in values.items() if name == "laser_step_phase_seconds"
    }
    assert phases == {"rollout": 4.0, "verify": 0.5, "learn": 3.0, "sync": 0.5, "other": 1.0}
    assert values["laser_step", ()] == 7.0
    assert values["laser_accuracy_ratio", ()] == 0.25
    assert values["laser_weight_sync_seconds", ()] == 0.5
    assert values["laser_pool_tokens_per_second", (("pool", "rollout"),)] == 800.0
    assert ("laser_score_wrong", ()) not in values, "no wrong solution in the step: the last mean stays"
    assert not [name for name, _ in values if name == "laser_grad_norm"], "not among the step's metrics"


def test_a_pool_becomes_gauges_of_every_state():
    values = of_pool(
        "rollout",
        PoolStats(3, 2.5, 64, {WorkerState.STARTING: 1, WorkerState.STALE: 0, WorkerState.READY: 7}, 1),
    )
    assert values == {
        ("laser_pool_queue_tasks", (("pool", "rollout"),)): 3.0,
        ("laser_pool_queue_age_seconds", (("pool", "rollout"),)): 2.5,
        ("laser_pool_in_flight_tasks", (("pool", "rollout"),)): 64.0,
        ("laser_pool_workers", (("pool", "rollout"), ("state", "starting"))): 1.0,
        ("laser_pool_workers", (("pool", "rollout"), ("state", "stale"))): 0.0,
        ("laser_pool_workers", (("pool", "rollout"), ("state", "ready"))): 7.0,
    }


def test_names_say_unit_and_kind():
    for metric in METRICS.values():
        assert metric.name.startswith("laser_")
        assert metric.name.endswith("_total") == (metric.kind is live_metrics.Counter), metric.name
        assert metric.about
        assert metric.tags or set(metric.of_step.values()) <= {""}, metric.name


class Worker:
    def ping(self):
        return True


@pytest.fixture
def config(tmp_path):
    return configure(run={"name": "live", "dir": str(tmp_path), "steps": 2})


@pytest.mark.usefixtures("ray_cluster")
def test_a_local_run_without_dashboard_is_shown_at_next_to_no_cost_and_its_thread_ends_with_it(
    config, monkeypatch
):
    monkeypatch.setattr(live_metrics, "SAMPLE_EVERY_S", 0.001)
    spawn = ray.remote(Worker).options(num_cpus=0)
    pools = SimpleNamespace(
        rollouts=Pool("rollout", lambda index: spawn.remote(), 2, 64),
        verifiers=Pool("verification", lambda index: spawn.remote(), 2, 2),
        learner_restarts=0,
    )
    # run.dir does not exist yet: its disk cannot be asked, which is no error.
    with LiveMetrics(config, pools) as live:
        live.checked(
            [
                Verdict(Status.CORRECT, seconds=0.01),
                Verdict(Status.CORRECT),
                Verdict(Status.TIMEOUT, seconds=10.1),
            ]
        )
        live.step(1, STEP)
        pools.learner_restarts = 1
        before, cpu = time.monotonic(), time.process_time()
        live._sample()
        assert time.monotonic() - before < 0.5
        assert time.process_time() - cpu < 0.05, "a look at the pools, every 5 s"
    assert "live-metrics" not in [thread.name for thread in threading.enumerate()]
    assert live._restarts == {"rollout": 0, "verification": 0, "learning": 1}, (
        "what Ray's counters have been told"
    )
    for pool in (pools.rollouts, pools.verifiers):
        pool.stop()
