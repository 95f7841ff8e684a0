import os
import signal
import subprocess
import sys
import time
import urllib.request

# Before anything imports torch, here or in a child: several threads on a shared machine slow each other down.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

import pytest

from benchmarks.chaos.nodes import free_port


@pytest.fixture(scope="session")
def ray_cluster():
    """Ray on this machine, started once since it takes seconds; four CPUs by name, so that pools of two fit
    beside each other.
    """
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


class MlflowServer:
    """A real `mlflow server` on a port of its own, which can be killed and started again."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        """Return when it answers."""
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
            "--workers",
            "1",
        ]
        command += [
            "--artifacts-destination",
            str(self.folder / "artifacts"),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight more processes
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self.folder
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def kill(self):
        """With SIGKILL, workers included; again is no error."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def mlflow_process(tmp_path_factory):
    """The tests' MLflow server, not necessarily up."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow_server"))
    yield server
    server.kill()


@pytest.fixture
def mlflow_server(mlflow_process):
    """The tests' MLflow server, up."""
    if mlflow_process.process is None:
        mlflow_process.start()
    return mlflow_process


@pytest.fixture(scope="session")
def s3_address():
    """The address of a real S3 server with the bucket `laser`."""
    from tests.s3 import s3_server

    with s3_server() as address:
        yield address


@pytest.fixture
def s3(s3_address, monkeypatch):
    """The S3 server, with its address and credentials in the environment."""
    from tests.s3 import KEYS

    for name, value in (KEYS | {"AWS_ENDPOINT_URL_S3": s3_address}).items():
        monkeypatch.setenv(name, value)
    return s3_address
