"""The page of metrics."""

from orchestrator.serving.metrics import IngressMetrics, merged


def test_one_page_of_metrics_tells_replicas_apart_and_counts_who_waits():
    ingresses = [IngressMetrics(), IngressMetrics()]
    for number, metrics in enumerate(ingresses):
        metrics.in_flight.labels("m").set(3 + number)
        metrics.requests.labels("chat", "m", "200").inc(10)
    replica = (
        "# HELP laser_replica_requests r\n# TYPE laser_replica_requests gauge\nlaser_replica_requests 5.0\n"
    )
    pages = {("laser-ingress", number): metrics.text() for number, metrics in enumerate(ingresses)} | {
        ("m", 0): replica
    }
    lines = merged(pages).decode().splitlines()
    for number in range(2):
        labels = f'{{application="laser-ingress",endpoint="chat",model="m",replica="{number}",status="200"}}'
        assert f"laser_requests_total{labels} 10.0" in lines
    assert 'laser_replica_requests{application="m",replica="0"} 5.0' in lines
    assert "laser_queue_depth 2.0" in lines, "3 + 4 in flight, 5 of them with a replica"
    assert len([line for line in lines if line == "# TYPE laser_requests_total counter"]) == 1
