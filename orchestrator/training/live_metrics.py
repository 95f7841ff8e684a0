"""A run's metrics while it goes on, for Prometheus: what MLflow gets of a step, and what the pools do meanwhile.

In: the metrics and verdicts of steps, and the pools, looked at every few seconds. Out: `ray.util.metrics` of this process; every Ray node
has a page of its processes' metrics, on which `laser_step` of the table below is `ray_laser_step`. Dashboards and rules: dashboards/.
"""

import math
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from ray.util import metrics as ray_metrics

from orchestrator.config.training import RunConfig
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.pool import Pool, PoolStats

SAMPLE_EVERY_S = 5.0
"""Ray drops a gauge that was not set for two of its reports, which are 10 s apart."""
CHECK_SECONDS = [
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    15.0,
    30.0,
    60.0,
]


class LivePools(Protocol):
    """What is looked at of a run's pools."""

    rollouts: Pool
    verifiers: Pool
    learner_restarts: int


@dataclass(frozen=True)
class LiveMetric:
    """One metric. Beside `tags` it has the tag `run`, the run's name.

    `of_step` maps keys of a step's metrics to the value of the metric's tag, "" where it has none.
    """

    name: str
    kind: type[ray_metrics.Metric]
    about: str
    tags: tuple[str, ...] = ()
    of_step: Mapping[str, str] = field(default_factory=dict)


class Counter(ray_metrics.Counter):
    """A counter that can be shown before it counts: Prometheus' `increase` does not see a series' first value."""

    def show(self, tags: dict[str, str]) -> None:
        self._record(0.0, tags)


class Histogram(ray_metrics.Histogram):
    """Seconds of a check."""

    def __init__(self, name: str, about: str, tag_keys: tuple[str, ...]) -> None:
        super().__init__(name, about, CHECK_SECONDS, tag_keys)


Gauge = ray_metrics.Gauge

METRICS = {
    metric.name: metric
    for metric in (
        LiveMetric("laser_planned_steps", Gauge, "The number of the run's last step"),
        LiveMetric("laser_step", Gauge, "The step that was finished last", of_step={"step": ""}),
        LiveMetric("laser_steps_total", Counter, "Steps finished, those done again after an accident included"),
        LiveMetric("laser_last_step_timestamp_seconds", Gauge, "Unix time of the end of the last step; before the first, of the start"),
        LiveMetric(
            "laser_step_phase_seconds", Gauge, "Parts of the last step: rollout, verify, learn, sync, other", ("phase",),
            {"time/rollout": "rollout", "time/verify": "verify", "time/learn": "learn", "time/sync": "sync", "time/other": "other"},
        ),
        LiveMetric("laser_samples_per_second", Gauge, "Samples a second of the last step", of_step={"throughput/samples_per_s": ""}),
        LiveMetric(
            "laser_pool_tokens_per_second", Gauge, "Response tokens a second that a pool made or learnt while it worked", ("pool",),
            {"throughput/rollout_tokens_per_s": "rollout", "throughput/learning_tokens_per_s": "learning"},
        ),
        LiveMetric("laser_pool_queue_tasks", Gauge, "Tasks (groups) that no worker of the pool has room for", ("pool",)),
        LiveMetric("laser_pool_queue_age_seconds", Gauge, "Age of the oldest queued task; 0 without any", ("pool",)),
        LiveMetric("laser_pool_in_flight_tasks", Gauge, "Tasks (groups) that workers of the pool have", ("pool",)),
        LiveMetric("laser_pool_workers", Gauge, "Workers by state: starting, stale (weights missing), ready", ("pool", "state")),
        LiveMetric("laser_pool_restarts_total", Counter, "Workers replaced after they died", ("pool",)),
        LiveMetric("laser_batch_staleness_steps", Gauge, "Mean age of the last batch's weights", of_step={"rollout/staleness": ""}),
        LiveMetric("laser_weight_sync_seconds", Gauge, "Last publication of weights to the engines", of_step={"time/sync": ""}),
        LiveMetric("laser_weight_sync_bytes", Gauge, "Size of the weights that each engine reads", of_step={"sync/bytes": ""}),
        LiveMetric("laser_check_seconds", Histogram, "Seconds of a check, by its status", ("status",)),
        LiveMetric("laser_deadline_kills_total", Counter, "Checks that were killed at verification.timeout_s"),
        LiveMetric("laser_accuracy_ratio", Gauge, "Correct share of the last batch's checked samples", of_step={"train/accuracy": ""}),
        LiveMetric("laser_self_verification_f1_ratio", Gauge, "F1 of score > 0.5 against the verifier", of_step={"self_reward/f1": ""}),
        LiveMetric("laser_score_correct", Gauge, "Mean score of correct solutions", of_step={"self_reward/score_correct": ""}),
        LiveMetric("laser_score_wrong", Gauge, "Mean score of wrong solutions", of_step={"self_reward/score_wrong": ""}),
        LiveMetric("laser_grad_norm", Gauge, "Norm of the gradient, before clipping", of_step={"policy/grad_norm": ""}),
        LiveMetric("laser_mismatch_nats", Gauge, "Largest gap of a log-prob, engine to learner", of_step={"policy/mismatch_max": ""}),
        LiveMetric("laser_run_disk_free_ratio", Gauge, "Free share of the disk of run.dir"),
    )
}  # fmt: skip
"""Every metric by its name, which has a unit unless it counts: a board, a rule and docs/monitoring.md name no other."""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and tags."""


def _key(name: str, **tags: str) -> Key:
    return name, tuple(tags.items())


class LiveMetrics:
    """Shows a run while the context lasts; afterwards its gauges vanish, which tells a run that has ended from one that hangs."""

    def __init__(self, config: RunConfig, pools: LivePools) -> None:
        self._run, self._folder, self._pools = config.run.name, config.folder, pools
        self._metrics: dict[str, Any] = {
            m.name: m.kind(m.name, m.about, tag_keys=("run", *m.tags)) for m in METRICS.values()
        }
        self._gauges = {
            _key("laser_planned_steps"): float(config.run.steps),
            _key("laser_last_step_timestamp_seconds"): time.time(),
        }
        self._restarts = {"rollout": 0, "verification": 0, "learning": 0}
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample_until_the_end, name="live-metrics", daemon=True)

    def __enter__(self) -> Self:
        for name in ("laser_steps_total", "laser_deadline_kills_total"):
            self._metrics[name].show(self._tags())
        for pool in self._restarts:
            self._metrics["laser_pool_restarts_total"].show(self._tags(pool=pool))
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._sampler.join()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` is done, with these metrics; one that a step does not define keeps the value of the step before."""
        self._gauges = (
            self._gauges | of_step(step, metrics) | {_key("laser_last_step_timestamp_seconds"): time.time()}
        )
        self._show(self._gauges)
        self._metrics["laser_steps_total"].inc(1, self._tags())

    def checked(self, verdicts: Iterable[Verdict]) -> None:
        """Count the checks that were run for these verdicts."""
        for verdict in verdicts:
            if verdict.seconds is not None:
                self._metrics["laser_check_seconds"].observe(
                    verdict.seconds, self._tags(status=str(verdict.status))
                )
                if verdict.status is Status.TIMEOUT:
                    self._metrics["laser_deadline_kills_total"].inc(1, self._tags())

    def _sample_until_the_end(self) -> None:
        while True:
            self._sample()
            if self._ended.wait(SAMPLE_EVERY_S):
                break
        self._sample()

    def _sample(self) -> None:
        values = dict(self._gauges)
        restarts = {"learning": self._pools.learner_restarts}
        for pool in (self._pools.rollouts, self._pools.verifiers):
            stats = pool.stats()
            values |= of_pool(pool.name, stats)
            restarts[pool.name] = stats.restarts
        with suppress(OSError):  # a disk that cannot be asked ends no run
            disk = shutil.disk_usage(self._folder)
            values[_key("laser_run_disk_free_ratio")] = disk.free / (
                disk.used + disk.free
            )  # as `df` counts: without what root keeps
        self._show(values)
        for name, count in restarts.items():
            if count > self._restarts[name]:
                self._metrics["laser_pool_restarts_total"].inc(
                    count - self._restarts[name], self._tags(pool=name)
                )
                self._restarts[name] = count

    def _show(self, values: Mapping[Key, float]) -> None:
        for (name, tags), value in values.items():
            self._metrics[name].set(value, self._tags(**dict(tags)))

    def _tags(self, **tags: str) -> dict[str, str]:
        return {"run": self._run} | tags


def of_step(step: int, metrics: Mapping[str, float]) -> dict[Key, float]:
    """The gauges of a finished step. A figure that is NaN, as the mean score of no sample, is left out."""
    phases = sum(metrics[f"time/{phase}"] for phase in ("rollout", "verify", "learn", "sync"))
    known = {**metrics, "step": float(step), "time/other": max(0.0, metrics["time/step"] - phases)}
    return {
        _key(metric.name, **({metric.tags[0]: tag} if tag else {})): known[key]
        for metric in METRICS.values()
        for key, tag in metric.of_step.items()
        if not math.isnan(known.get(key, math.nan))
    }


def of_pool(pool: str, stats: PoolStats) -> dict[Key, float]:
    """The gauges of a pool."""
    values = {
        _key("laser_pool_queue_tasks", pool=pool): float(stats.queued),
        _key("laser_pool_queue_age_seconds", pool=pool): stats.oldest_queued_s,
        _key("laser_pool_in_flight_tasks", pool=pool): float(stats.in_flight),
    }
    return values | {
        _key("laser_pool_workers", pool=pool, state=str(state)): float(n)
        for state, n in stats.workers.items()
    }
