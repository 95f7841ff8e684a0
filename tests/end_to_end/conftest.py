"""Real Ray, vLLM, DeepSpeed and MLflow on the quick-start's tiny model: fixtures shared by the end-to-end
tests.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from experiments.quickstart.task import write_data, write_untrained


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quick-start's data (a little of it) and its untrained model."""
    folder = tmp_path_factory.mktemp("task")
    write_data(folder, seed=0, train=64, test=8, sft=64)
    write_untrained(folder / "untrained", seed=0)
    return folder


@pytest.fixture(scope="session")
def models(task: Path) -> dict[str, Path]:
    """Two freshly initialised models, with tied and with untied embeddings, whose logits are far from
    uniform.
    """
    folders = {}
    tokenizer = AutoTokenizer.from_pretrained(task / "untrained")
    for name, tied in (("tied", True), ("untied", False)):
        config = Qwen2Config.from_pretrained(task / "untrained", tie_word_embeddings=tied)
        torch.manual_seed(7)
        model = Qwen2ForCausalLM(config).float()
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(3.0)
        folders[name] = task / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


class Laser:
    """The `laser` command as a user runs it, in a process of its own, and what can befall it."""

    repository = Path(__file__).parents[2]
    program = str(Path(sys.executable).parent / "laser")
    planted: ClassVar = {"HF_TOKEN": "hf_planted-1", "LASER_JUDGE_API_KEY": "sk-planted-2"}
    """Secrets of the environment, which nothing may write down."""
    environment = os.environ | {"COLUMNS": "160", "NO_COLOR": "1"} | planted

    def leaks(self, folder: Path) -> list[Path]:
        """Files of a folder that hold a planted secret."""
        secrets = [secret.encode() for secret in self.planted.values()]
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in files if any(secret in path.read_bytes() for secret in secrets)]

    def run(self, *arguments: str, timeout_s: float = 480) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *arguments],
            cwd=self.repository,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self.environment,
            check=False,
        )

    @contextlib.contextmanager
    def started(self, *arguments: str):
        """The running command; whatever is left of it at the end is killed."""
        process = subprocess.Popen(
            [self.program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.repository,
            env=self.environment,
        )
        try:
            yield process
        finally:
            self.kill_all(process)

    def wait_for(self, path: Path, process: subprocess.Popen, timeout_s: float = 480) -> None:
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            assert process.poll() is None, (
                f"the command ended before it wrote {path}: {process.stdout.read()}"
            )
            assert time.monotonic() < deadline, f"no {path} within {timeout_s} s"
            time.sleep(0.05)

    def kill_all(self, process: subprocess.Popen) -> None:
        """kill -9 of the whole command: the driver, and its Ray with all actors."""
        kill_tree(process)

    def kill_actor(self, process: subprocess.Popen, name: str) -> None:
        """kill -9 of one actor."""
        actors = [
            p
            for p in psutil.Process(process.pid).children(recursive=True)
            if any(name in part for part in p.cmdline())
        ]
        actors[-1].kill()


@pytest.fixture(scope="session")
def laser() -> Laser:
    return Laser()


class RayCluster:
    """A Ray cluster as an operator starts it: `ray start` processes with a token, on ports and in a folder of
    their own.

    Its nodes are processes of this machine, each with the CPUs and custom resources it is said to have.
    """

    def __init__(self) -> None:
        self.folder = Path(
            tempfile.mkdtemp(prefix="ray-")
        )  # a short path: sockets lie in it, whose names are bounded
        self.token = secrets.token_hex(24)
        self.nodes: list[subprocess.Popen] = []
        self.started = 0
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "COLUMNS": "160",
            "NO_COLOR": "1",
        }
        self.environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

    def start(self, cpus: float, resources: dict[str, float] | None = None) -> None:
        """The head, with a dashboard and its job server."""
        port, dashboard = _free_port(), _free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        ports = [
            "--head",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={_free_port()}",
        ]
        self._start_node([*ports, "--include-dashboard=true"], cpus, resources)
        self._wait_for_head()

    def add_node(
        self, cpus: float, resources: dict[str, float] | None = None, command: tuple[str, ...] = ()
    ) -> subprocess.Popen:
        """One more node; `command` is what `ray start` is called through, such as `unshare`. Returns when the
        cluster knows it.
        """
        before = {node["node_id"] for node in self.alive_nodes()}
        node = self._start_node([f"--address={self.address}"], cpus, resources, command)
        deadline = time.monotonic() + 60
        while not {node["node_id"] for node in self.alive_nodes()} - before:
            assert node.poll() is None, f"the node ended: {self._log()}"
            assert time.monotonic() < deadline, f"the node did not join: {self._log()}"
            time.sleep(0.3)
        return node

    def kill_node(self, node: subprocess.Popen) -> None:
        """kill -9 of a node: its raylet and all actors on it."""
        kill_tree(node)
        self.nodes.remove(node)

    def alive_nodes(self) -> list[dict]:
        """What the cluster knows of its nodes, each with `node_id` and `resources_total`."""
        nodes = self._get("/api/v0/nodes?detail=1&limit=1000")["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]

    @property
    def metrics_file(self) -> Path:
        """The nodes' metrics addresses, for Prometheus."""
        return self.folder / "0" / "prom_metrics_service_discovery.json"

    def stop(self) -> None:
        for node in reversed(self.nodes):
            kill_tree(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_node(
        self,
        arguments: list[str],
        cpus: float,
        resources: dict[str, float] | None,
        command: tuple[str, ...] = (),
    ) -> subprocess.Popen:
        ray = str(Path(sys.executable).parent / "ray")
        # Each with its own files, as on machines of their own: nodes unpack a job's code where the others
        # would be reading it.
        files = f"--temp-dir={self.folder / str(self.started)}"
        self.started += 1
        given = [
            files,
            f"--num-cpus={cpus}",
            f"--resources={json.dumps(resources or {})}",
            "--node-ip-address=127.0.0.1",
            "--block",
        ]
        more = [f"--object-store-memory={200 * 2**20}", "--disable-usage-stats"]
        more += [
            f"--{name}={_free_port()}" for name in ("metrics-export-port", "dashboard-agent-listen-port")
        ]
        with (self.folder / "nodes.log").open("a") as log:
            node = subprocess.Popen(
                [*command, ray, "start", *arguments, *given, *more],
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
                cwd=self.folder,
            )
        self.nodes.append(node)
        return node

    def _wait_for_head(self) -> None:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):
                if self.alive_nodes():
                    return
            assert self.nodes[0].poll() is None, f"the head ended: {self._log()}"
            assert time.monotonic() < deadline, f"the head did not start: {self._log()}"
            time.sleep(0.3)

    def _get(self, path: str) -> dict:
        request = urllib.request.Request(
            f"{self.dashboard}{path}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)

    def _log(self) -> str:
        return (self.folder / "nodes.log").read_text()[-3000:]


def kill_tree(process: subprocess.Popen) -> None:
    """kill -9 of a process and everything that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for victim in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[RayCluster]:
    """A head of two CPUs, for learners too; a test may add nodes. The module may give Ray settings of its
    own, `RAY_SETTINGS`.
    """
    cluster = RayCluster()
    cluster.environment |= getattr(request.module, "RAY_SETTINGS", {})
    try:
        cluster.start(cpus=2, resources={"learner": 2})
        yield cluster
    finally:
        cluster.stop()
