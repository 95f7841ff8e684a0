"""Prometheus metrics of the ingress and the engine replicas, merged into one page.

The label `replica` tells replicas apart. A page of one replica would depend on which replica a scrape
reaches.
"""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
SCORES = tuple(step / 10 for step in range(-5, 16))
"""Bounds of the score histogram's buckets. 0.5 is one of them: above it a model calls a solution correct."""


class IngressMetrics:
    """The metrics of one ingress replica."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        about = ["endpoint", "model"]
        statuses = "Requests answered, by HTTP status; 499: the client left"
        self.requests = Counter("laser_requests", statuses, [*about, "status"], registry=registry)
        seconds = "From a valid request to its answer's end"
        self.seconds = Histogram("laser_request_seconds", seconds, about, buckets=SECONDS, registry=registry)
        self.in_flight = Gauge(
            "laser_requests_in_flight", "Valid requests not yet answered", ["model"], registry=registry
        )
        self.retries = Counter(
            "laser_retries",
            "Requests given to another replica because theirs died",
            ["model"],
            registry=registry,
        )

    def total_in_flight(self) -> int:
        """Valid requests to any model that are not yet answered."""
        return int(sum(sample.value for metric in self.in_flight.collect() for sample in metric.samples))

    def text(self) -> str:
        """Prometheus text."""
        return generate_latest(self.registry).decode()


class ReplicaMetrics:
    """The metrics of one engine replica, which serves `weights`."""

    def __init__(self, weights: str) -> None:
        self.registry = registry = CollectorRegistry()
        self.tokens_read = Counter(
            "laser_prompt_tokens", "Prompt tokens of chat completions", registry=registry
        )
        self.tokens_written = Counter("laser_response_tokens", "Sampled tokens", registry=registry)
        self.scores = Histogram(
            "laser_self_reward", "Self-rewards given", ["endpoint"], buckets=SCORES, registry=registry
        )
        self.requests = Gauge(
            "laser_replica_requests", "Requests that the replica works on", registry=registry
        )
        self.sequences = Gauge(
            "laser_engine_sequences", "Sequences in the engine, running and waiting", registry=registry
        )
        Info("laser_weights", "The weights that the replica serves", registry=registry).info(
            {"weights": weights}
        )

    def text(self) -> str:
        """Prometheus text."""
        return generate_latest(self.registry).decode()


def merged(pages: Mapping[tuple[str, int], str]) -> bytes:
    """One page from the pages of all replicas, by application and number of the replica.

    `laser_queue_depth` is added: requests in flight in an ingress that no engine replica works on.
    """
    families: dict[str, Metric] = {}
    totals = {"laser_requests_in_flight": 0.0, "laser_replica_requests": 0.0}
    for (application, number), text in pages.items():
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                if sample.name in totals:
                    totals[sample.name] += sample.value
                labels = {"application": application, "replica": str(number)} | sample.labels
                whole.add_sample(sample.name, labels, sample.value)
    depth = Metric("laser_queue_depth", "Requests that wait for a replica with room", "gauge")
    depth.add_sample(
        depth.name, {}, max(0.0, totals["laser_requests_in_flight"] - totals["laser_replica_requests"])
    )
    return generate_latest(_Pages([*families.values(), depth]))


class _Pages(CollectorRegistry):
    """Metrics in the form that `generate_latest` takes."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families
