"""Real Prometheus on a real run and a real service: every metric that a board or rule names is there, and no
panel is empty.
"""

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
import yaml

from benchmarks.chaos.nodes import free_port

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
STEPS = 20

OF_GPUS = {"ray_node_gpus_utilization"}
AFTER_A_REPLICA_DIED = {"laser_retries_total"}
"""Counted only then. Its name is compared with the code in tests/dashboards/test_boards.py."""


class Prometheus:
    """The repository's configuration and rules, with addresses and intervals of the test's own."""

    def __init__(self, folder: Path, metrics_file: Path, service_port: int) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip(
                "Prometheus is not installed (Debian: apt-get install prometheus): "
                "no board was compared with a real run"
            )
        text = (DASHBOARDS / "prometheus.yml").read_text()
        for old, new in (
            ("/tmp/ray/prom_metrics_service_discovery.json", str(metrics_file)),
            ("127.0.0.1:8000", f"127.0.0.1:{service_port}"),
            ("_interval: 10s", "_interval: 2s"),
        ):
            assert old in text
            text = text.replace(old, new)
        (folder / "prometheus.yml").write_text(text)
        shutil.copy(DASHBOARDS / "alerts.yml", folder)
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}/api/v1"
        with (folder / "prometheus.log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    f"--web.listen-address={address}",
                ],
                cwd=folder,
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **parameters: str | float) -> list:
        reply = httpx.get(f"{self.url}/{path}", params=parameters, timeout=30).json()
        assert reply["status"] == "success", reply
        return reply["data"]["result"] if path.startswith("query") else reply["data"]

    def has_data(self, expression: str, start: float) -> bool:
        """Whether the expression had a value at some second since `start`."""
        found = self.get("query_range", query=expression, start=start, end=time.time(), step=1)
        return any(not math.isnan(float(value)) for series in found for _, value in series["values"])


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def service_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def prometheus(cluster, service_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), cluster.metrics_file, service_port)
    yield prometheus
    prometheus.process.kill()
    prometheus.process.wait()


def of_boards() -> list[str]:
    """Expressions of all boards' panels."""
    panels = [
        panel
        for path in (DASHBOARDS / "grafana").glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
    ]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def metrics_in(text: str) -> set[str]:
    """Ray's, a run's and the service's. Recorded ones, with colons, belong to the panels that show them."""
    return set(re.findall(r"(?<![\w:])(?:ray_|laser_)\w+(?!:)", text))


def test_prometheus_finds_every_metric_of_boards_and_rules(
    prometheus: Prometheus, cluster, service_port: int, laser, task: Path, tmp_path: Path
) -> None:
    tree = {
        "run": {"name": "seen", "dir": str(tmp_path), "steps": STEPS},
        "model": {"path": "experiments/quickstart/base"},
        "data": {"train": str(task / "train.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4,
            "prompts_per_step": 8,
            "max_prompt_tokens": 80,
            "max_response_tokens": 40,
            "cpus": 0.5,
            "engine_args": {"enforce_eager": True},
        },
        "verification": {"cpus": 0.25},
        "learning": {"cpus_per_rank": 0.25, "tokens_per_micro_batch": 1024},
        "loss": {"self_reward_warmup_steps": 1},
        "self_reward": {"token": "<|self_reward|>", "calibration_samples": 16},
    }
    config, started = tmp_path / "seen.yaml", time.time()
    config.write_text(yaml.safe_dump(tree))
    # A driver reports every 10 s, and this run may be over by then.
    environment = cluster.environment | {
        "RAY_ADDRESS": cluster.address,
        "RAY_metrics_report_interval_ms": "1000",
    }
    command = [laser.program, "train", str(config)]
    trained = subprocess.run(
        command,
        cwd=laser.repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr

    serve = [
        laser.program,
        "serve",
        "--model",
        f"tiny={tmp_path / 'seen'}",
        "--port",
        str(service_port),
        "engine.cpus=0.5",
    ]
    with (tmp_path / "serve.log").open("w") as log:
        service = subprocess.Popen(
            [*serve, "engine.engine_args={enforce_eager: true}"],
            cwd=laser.repository,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(
            lambda: "ready: " in (tmp_path / "serve.log").read_text() or service.poll() is not None,
            "service",
            240,
        )
        url = f"http://127.0.0.1:{service_port}/v1"
        problem = json.loads((task / "train.jsonl").read_text().splitlines()[0])["problem"]
        body = {"model": "tiny", "messages": [{"role": "user", "content": problem}], "max_tokens": 40, "n": 8}
        wait_for(lambda: prometheus.has_data("laser_weights_info", started), "page of the service")
        for seen in (
            "laser_requests_total",
            "rate(laser_requests_total[5m]) > 0",
        ):  # a counter that begins at 1 has no rate yet
            assert httpx.post(f"{url}/chat/completions", json=body, timeout=60).status_code == 200
            score = {"items": [{"problem": problem, "solution": r"\boxed{1+2}"}]}
            assert httpx.post(f"{url}/score", json=score, timeout=60).status_code == 200
            wait_for(lambda seen=seen: prometheus.has_data(seen, started), f"value of {seen}")
    finally:
        laser.kill_all(service)

    there = set(prometheus.get("label/__name__/values"))
    absent = AFTER_A_REPLICA_DIED | (set() if torch.cuda.is_available() else OF_GPUS)
    named = metrics_in((DASHBOARDS / "alerts.yml").read_text()).union(*map(metrics_in, of_boards()))
    assert named - there - absent == set()
    values = {"run": "seen", "model": "tiny", "__rate_interval": "20s"}
    for expression in of_boards():
        if not metrics_in(expression) <= absent:
            asked = re.sub(r"\$(\w+)", lambda variable: values[variable[1]], expression)
            assert prometheus.has_data(asked, started), f"an empty panel: {asked}"

    (steps,) = prometheus.get("query", query='max_over_time(ray_laser_steps_total{run="seen"}[10m])')
    assert steps["metric"]["run"] == "seen"
    assert 1 <= float(steps["value"][1]) <= STEPS
    firing = {
        alert["metric"]["alertname"]
        for alert in prometheus.get("query", query='max_over_time(ALERTS{alertstate="firing"}[10m])')
    }
    assert not {name for name in firing if "Disk" not in name}, "a run that went well, on whatever disk"
