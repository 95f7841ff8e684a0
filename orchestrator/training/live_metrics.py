"""A running run's metrics for Prometheus: the metrics of each step, and the state of the pools.

In: the metrics and verdicts of steps, and the pools, sampled every few seconds. Out: `ray.util.metrics` of
this process. Every Ray node serves a page with the metrics of its processes; there `laser_step` is
`ray_laser_step`. Boards and alerts: dashboards/.
"""

import math
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from ray.util import metrics as ray_metrics

from orchestrator.algorithm.health import RULES
from orchestrator.config.training import RunConfig
from orchestrator.measures import measure_of
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.pool import PoolStats
from orchestrator.pools.training import Pools

SAMPLE_EVERY_S = 5.0
"""Ray reports every 10 s and drops a gauge that two reports in a row did not set."""
CHECK_SECONDS = (
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
)
"""Upper bounds of the buckets of `laser_check_seconds`."""


class Counter(ray_metrics.Counter):
    """A counter that is exported before it counts: Prometheus' `increase` misses a series' first value."""

    def export(self, tags: dict[str, str]) -> None:
        """Export the present value."""
        self._record(0.0, tags)  # `inc` refuses 0


Gauge = ray_metrics.Gauge
Histogram = ray_metrics.Histogram


@dataclass(frozen=True)
class LiveMetric:
    """One metric. It has the tag `run`, the run's name, and those of `tags`.

    `of_step` maps keys of a step's metrics to the value of the metric's tag, "" where it has none.
    """

    name: str
    kind: type[ray_metrics.Metric]
    about: str
    tags: tuple[str, ...] = ()
    of_step: Mapping[str, str] = field(default_factory=dict)

    def register(self) -> ray_metrics.Metric:
        """The metric in this process's registry."""
        tag_keys = ("run", *self.tags)
        if self.kind is Histogram:
            return Histogram(self.name, self.about, list(CHECK_SECONDS), tag_keys)
        return self.kind(self.name, self.about, tag_keys=tag_keys)


def _gauge_of(name: str, key: str) -> LiveMetric:
    """The gauge of one metric of a step."""
    return LiveMetric(name, Gauge, measure_of(key).about, of_step={key: ""})


METRICS = {
    metric.name: metric
    for metric in (
        LiveMetric("laser_planned_steps", Gauge, "Number of the run's last step"),
        LiveMetric("laser_step", Gauge, "The last finished step", of_step={"step": ""}),
        LiveMetric(
            "laser_steps_total", Counter, "Finished steps; steps repeated after a failure count again"
        ),
        LiveMetric(
            "laser_last_step_timestamp_seconds",
            Gauge,
            "Unix time at the end of the last step; before the first step, at the start",
        ),
        LiveMetric(
            "laser_step_phase_seconds",
            Gauge,
            "Parts of the last step: rollout, verify, learn, sync, other",
            ("phase",),
            {
                "time/rollout": "rollout",
                "time/verify": "verify",
                "time/learn": "learn",
                "time/sync": "sync",
                "time/other": "other",
            },
        ),
        _gauge_of("laser_samples_per_second", "throughput/samples_per_s"),
        LiveMetric(
            "laser_pool_tokens_per_second",
            Gauge,
            "Response tokens a second while the pool works",
            ("pool",),
            {"throughput/rollout_tokens_per_s": "rollout", "throughput/learning_tokens_per_s": "learning"},
        ),
        LiveMetric(
            "laser_pool_queue_tasks", Gauge, "Queued tasks (groups), for which no worker has room", ("pool",)
        ),
        LiveMetric(
            "laser_pool_queue_age_seconds",
            Gauge,
            "Age of the oldest queued task; 0 when none waits",
            ("pool",),
        ),
        LiveMetric("laser_pool_in_flight_tasks", Gauge, "Tasks (groups) that workers run", ("pool",)),
        LiveMetric(
            "laser_pool_workers",
            Gauge,
            "Workers by state: starting, stale (old weights), ready",
            ("pool", "state"),
        ),
        LiveMetric("laser_pool_restarts_total", Counter, "Workers replaced after they died", ("pool",)),
        _gauge_of("laser_batch_staleness_steps", "rollout/staleness"),
        _gauge_of("laser_batch_staleness_max_steps", "rollout/staleness_max"),
        _gauge_of("laser_weight_sync_seconds", "time/sync"),
        _gauge_of("laser_weight_sync_bytes", "sync/bytes"),
        LiveMetric("laser_check_seconds", Histogram, "Seconds of a check, by its status", ("status",)),
        LiveMetric("laser_deadline_kills_total", Counter, "Checks killed at verification.timeout_s"),
        _gauge_of("laser_accuracy_ratio", "train/accuracy"),
        _gauge_of("laser_self_verification_f1_ratio", "self_reward/f1"),
        _gauge_of("laser_score_correct", "self_reward/score_correct"),
        _gauge_of("laser_score_wrong", "self_reward/score_wrong"),
        _gauge_of("laser_grad_norm", "policy/grad_norm"),
        _gauge_of("laser_mismatch_nats", "policy/mismatch_max"),
        LiveMetric(
            "laser_health_broken",
            Gauge,
            "1 while a health rule is broken, by the rule's name",
            ("rule",),
            {rule.key: rule.name for rule in RULES},
        ),
        LiveMetric("laser_skipped_steps_total", Counter, "Updates skipped, because a number was not finite"),
        LiveMetric("laser_run_disk_free_ratio", Gauge, "Free share of the disk of run.dir"),
    )
}
"""Every metric by its name. Boards, alerts and docs/monitoring.md name no other."""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and tags."""


def _key(name: str, **tags: str) -> Key:
    return name, tuple(tags.items())


class LiveMetrics:
    """Exports a run's metrics inside its context.

    Afterwards the gauges vanish. That distinguishes a finished run from a hanging one.
    """

    def __init__(self, config: RunConfig, pools: Pools) -> None:
        self._run = config.run.name
        self._folder = config.folder
        self._pools = pools
        self._metrics: dict[str, Any] = {metric.name: metric.register() for metric in METRICS.values()}
        self._gauges = {
            _key("laser_planned_steps"): float(config.run.steps),
            _key("laser_last_step_timestamp_seconds"): time.time(),
        }
        self._restarts = {"rollout": 0, "verification": 0, "learning": 0}
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample_until_the_end, name="live-metrics", daemon=True)

    def __enter__(self) -> Self:
        for name in ("laser_steps_total", "laser_deadline_kills_total", "laser_skipped_steps_total"):
            self._metrics[name].export(self._tags())
        for pool in self._restarts:
            self._metrics["laser_pool_restarts_total"].export(self._tags(pool=pool))
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._sampler.join()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Export the metrics of a finished step. A metric that the step does not define keeps its value."""
        self._gauges = (
            self._gauges | of_step(step, metrics) | {_key("laser_last_step_timestamp_seconds"): time.time()}
        )
        self._show(self._gauges)
        self._metrics["laser_steps_total"].inc(1, self._tags())
        if skipped := metrics.get("learn/skipped_steps"):
            self._metrics["laser_skipped_steps_total"].inc(skipped, self._tags())

    def checked(self, verdicts: Iterable[Verdict]) -> None:
        """Count the checks behind these verdicts; verdicts that share a check have no seconds."""
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
        with suppress(OSError):  # an unreadable disk must not end the run
            disk = shutil.disk_usage(self._folder)
            # As `df` counts: without the blocks reserved for root.
            values[_key("laser_run_disk_free_ratio")] = disk.free / (disk.used + disk.free)
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
    """The gauges of a finished step, without figures that are NaN, such as the mean score of no sample."""
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
