"""What docker-compose.yml starts, without Docker: its very commands as processes of this machine, with other
hosts, ports and folders.

MLflow on a real PostgreSQL where that is installed, else on sqlite. SeaweedFS comes as an image alone, so
moto's server speaks S3 in its place: it shows that our side (credentials, endpoint, bucket, MLflow's
settings) is right, and nothing of SeaweedFS itself.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import psutil
import psycopg2
import pytest
import yaml
from mlflow.tracking import MlflowClient

from benchmarks.chaos.nodes import free_port

ROOT = Path(__file__).parents[2]
POSTGRES = next(
    (
        path
        for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        if (path / "initdb").exists()
    ),
    None,
)
SECRETS = {
    name: secrets.token_hex(24)
    for name in ("RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD")
}
SETTINGS = SECRETS | {"RAY_OBJECT_STORE_BYTES": "100000000", "ROLLOUT_CPUS": "1", "VERIFIER_CPUS": "1"}


def services() -> dict:
    """docker-compose.yml's services with our settings, as .env would give them."""
    text = re.sub(
        r"\$\{(\w+):([-?])([^}]*)\}",
        lambda found: SETTINGS.get(found[1], found[3]),
        (ROOT / "docker-compose.yml").read_text(),
    )
    return yaml.safe_load(text)["services"]


SERVICES = services()


def replaced(arguments: list[str], options: dict[str, str]) -> list[str]:
    """A service's arguments with other values for some of its options, each of which it must have."""
    names = [argument.partition("=")[0] for argument in arguments]
    assert set(options) <= set(names)
    return [
        f"{name}={options[name]}" if name in options else argument
        for name, argument in zip(names, arguments, strict=True)
    ]


def health_url(service: str, port: int) -> str:
    """The address that the service's health check asks, on another port."""
    *command, url = SERVICES[service]["healthcheck"]["test"]
    assert command == ["CMD", "wget", "-q", "-O", "/dev/null"]
    return re.sub(r":\d+/", f":{port}/", url)


@contextlib.contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """A command of this environment; it and its children are killed at the end."""
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with log.open("a") as output:
        started = subprocess.Popen(
            [program, *command[1:]],
            env=os.environ | environment,
            stdout=output,
            stderr=output,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(started.pid)
            for victim in [*root.children(recursive=True), root]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
        started.wait()


def wait_until(
    ready: Callable[[], bool], what: str, log: Path, started: subprocess.Popen, timeout_s: float = 90
) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert started.poll() is None, f"{what}: the process ended: {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"{what} within {timeout_s} s: {log.read_text()[-3000:]}"
        time.sleep(0.2)


def answers(url: str, headers: dict[str, str] | None = None) -> int:
    """The HTTP status, 0 when nothing answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=5) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path that PostgreSQL's user may enter: sockets lie in it, whose names are bounded."""
    path = Path(tempfile.mkdtemp(prefix="up-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def database(folder: Path) -> Iterator[str]:
    """`127.0.0.1:PORT` of a PostgreSQL as its service describes it, or "" where none is installed."""
    if POSTGRES is None:
        yield ""
        return
    service, data, port = SERVICES["postgres"]["environment"], folder / "postgres", free_port()
    data.mkdir()
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses root
        shutil.chown(data, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    password = folder / "password"
    password.write_text(service["POSTGRES_PASSWORD"])
    password.chmod(0o644)
    initdb = [
        str(POSTGRES / "initdb"),
        f"--pgdata={data}",
        f"--username={service['POSTGRES_USER']}",
        f"--pwfile={password}",
    ]
    subprocess.run(
        [*as_user, *initdb, "--auth=scram-sha-256"], check=True, capture_output=True, timeout=60, cwd="/"
    )
    command = [*as_user, str(POSTGRES / "postgres"), f"-D{data}", f"-p{port}", "-h127.0.0.1", f"-k{data}"]
    with process(command, {}, folder / "postgres.log") as server:
        check = [*SERVICES["postgres"]["healthcheck"]["test"][1:], "--host=127.0.0.1", f"--port={port}"]
        check[0] = str(POSTGRES / check[0])
        wait_until(
            lambda: subprocess.run(check, capture_output=True, timeout=10, check=False).returncode == 0,
            "PostgreSQL is ready",
            folder / "postgres.log",
            server,
        )
        with contextlib.closing(connect(port, "postgres")) as connection:
            connection.autocommit = True  # as the image does with POSTGRES_DB
            connection.cursor().execute(f"create database {service['POSTGRES_DB']}")
        yield f"127.0.0.1:{port}"


def connect(port: int, name: str) -> psycopg2.extensions.connection:
    return psycopg2.connect(
        host="127.0.0.1", port=port, user="mlflow", dbname=name, password=SECRETS["POSTGRES_PASSWORD"]
    )


@pytest.fixture
def store(folder: Path) -> Iterator[dict[str, str]]:
    """MLflow's environment, with the address of an S3 server."""
    port = free_port()
    environment = {key: str(value) for key, value in SERVICES["mlflow"]["environment"].items()}
    environment["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{port}"
    with process(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], {}, folder / "s3.log"
    ) as server:
        wait_until(
            lambda: answers(environment["AWS_ENDPOINT_URL_S3"]) == 200,
            "S3 answers",
            folder / "s3.log",
            server,
        )
        yield environment


def test_mlflow_keeps_metrics_in_postgresql_and_artifacts_in_the_bucket(folder, database, store):
    bucket = SERVICES["bucket"]
    for _ in range(2):  # `up` runs it each time
        made = subprocess.run(
            [sys.executable, str(ROOT / bucket["command"][1]), *bucket["command"][2:]],
            env=os.environ | store, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr

    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    arguments = SERVICES["mlflow"]["command"]
    given = next(argument for argument in arguments if argument.startswith("--backend-store-uri="))
    backend = (
        given.partition("=")[2].replace("postgres:5432", database)
        if database
        else f"sqlite:///{folder}/mlflow.db"
    )
    hosts = (
        next(argument for argument in arguments if argument.startswith("--allowed-hosts="))
        .partition("=")[2]
        .replace("5000", str(port))
    )
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--backend-store-uri": backend,
        "--allowed-hosts": hosts,
    }
    log = folder / "mlflow.log"
    with process(replaced(arguments, options), store, log) as server:
        wait_until(lambda: answers(health_url("mlflow", port)) == 200, "MLflow is healthy", log, server)
        client = MlflowClient(uri)
        run = client.create_run(client.create_experiment("laser"), run_name="composed").info.run_id
        client.log_metric(run, "train/accuracy", 0.75, step=3)
        client.log_text(run, "a solution", "samples/one.txt")
        (point,) = client.get_metric_history(run, "train/accuracy")
        assert (point.value, point.step) == (0.75, 3)
        assert (
            Path(client.download_artifacts(run, "samples/one.txt", str(folder))).read_text() == "a solution"
        )
        assert (
            answers(f"{uri}/api/2.0/mlflow/experiments/get?experiment_id=0", {"Host": "mlflow:" + str(port)})
            == 200
        ), "as nodes call it"
        assert (
            answers(f"{uri}/api/2.0/mlflow/experiments/get?experiment_id=0", {"Host": "elsewhere.example"})
            == 403
        )

    keys = {
        "aws_access_key_id": store["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": store["AWS_SECRET_ACCESS_KEY"],
    }
    s3 = boto3.client("s3", endpoint_url=store["AWS_ENDPOINT_URL_S3"], region_name="us-east-1", **keys)
    names = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket["command"][-1])["Contents"]]
    assert any(
        name.startswith("artifacts/") and name.endswith(f"{run}/artifacts/samples/one.txt") for name in names
    ), names
    if not database:
        pytest.skip(
            "no PostgreSQL is installed here: MLflow was tried on sqlite (Debian: apt-get install postgresql)"
        )
    with contextlib.closing(connect(int(database.partition(":")[2]), "mlflow")) as connection:
        cursor = connection.cursor()
        cursor.execute("select value, step from metrics where key = 'train/accuracy'")
        assert cursor.fetchall() == [(0.75, 3)]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(
            host="127.0.0.1",
            port=int(database.partition(":")[2]),
            user="mlflow",
            dbname="mlflow",
            password="postgres",
        )


def test_head_and_workers_make_one_cluster_that_asks_for_the_token(folder):
    gcs, dashboard = free_port(), free_port()
    log = folder / "ray.log"
    agents = {name: free_port() for name in ("head", "rollout", "verifier")}
    metrics = {name: free_port() for name in agents}

    def start(name: str, options: dict[str, str], *more: str):
        service = SERVICES[name]
        environment = {key: str(value) for key, value in service["environment"].items()} | {
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"
        }
        # What a container has of its own: an address, and ports that no other node has.
        apart = ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agents[name]}", *more]
        program, *arguments = service["command"]
        command = [
            program,
            *replaced(arguments, options | {"--metrics-export-port": str(metrics[name])}),
            *apart,
        ]
        return process(command, environment, log)

    head = {"--port": str(gcs), "--dashboard-port": str(dashboard), "--dashboard-host": "127.0.0.1"}
    token = {"Authorization": f"Bearer {SECRETS['RAY_AUTH_TOKEN']}"}
    url = f"http://127.0.0.1:{dashboard}"

    def alive() -> list[dict]:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/nodes?view=summary", headers=token), timeout=10
        ) as reply:
            nodes = [node["raylet"] for node in json.load(reply)["data"]["summary"]]
        return [node["resourcesTotal"] for node in nodes if node.get("state") == "ALIVE"]

    with start("head", head, f"--temp-dir={folder}/ray", f"--ray-client-server-port={free_port()}") as node:
        wait_until(lambda: answers(health_url("head", dashboard)) == 200, "the head is healthy", log, node)
        with contextlib.ExitStack() as workers:
            for name in (
                "rollout",
                "verifier",
            ):  # one by one: nodes that share a machine take the same names for their sockets
                worker = workers.enter_context(start(name, {"--address": f"127.0.0.1:{gcs}"}))
                wait_until(
                    lambda name=name: answers(health_url(name, agents[name])) == 200,
                    f"{name} is healthy",
                    log,
                    worker,
                )
            wait_until(lambda: len(alive()) == 3, "three nodes are alive", log, node)
            assert answers(f"{url}/nodes?view=summary") == 401
            assert answers(f"{url}/api/jobs/", token) == 200
            pools = [{name: node.get(name) for name in ("CPU", "rollout", "verifier")} for node in alive()]
            assert sorted(pools, key=str) == sorted(
                [
                    {"CPU": None, "rollout": None, "verifier": None},
                    {"CPU": 1.0, "rollout": 100.0, "verifier": None},
                    {"CPU": 1.0, "rollout": None, "verifier": 100.0},
                ],
                key=str,
            )
            listed = folder / "ray" / "prom_metrics_service_discovery.json"
            ports = {str(port) for port in metrics.values()}
            wait_until(
                lambda: listed.exists() and all(port in listed.read_text() for port in ports),
                "the nodes are listed",
                log,
                node,
            )
            # Prometheus reads it as another user; it is a link into the folder of Ray's session.
            assert listed.stat().st_mode & 0o004
            assert listed.resolve().parent.stat().st_mode & 0o001
