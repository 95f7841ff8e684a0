"""A Ray cluster of several nodes on this machine, as an operator starts it, and a network that can be cut."""

import contextlib
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 90.0
PORTS = 20_000, 32_768
"""Above those of Ray's workers, and below those of connections."""


class RayCluster:
    """`ray start` processes with a token, on ports and in a folder of their own.

    Its nodes are processes of this machine, each with the CPUs and custom resources it is said to have.

    Args:
        ip: Address of the head.
    """

    def __init__(self, ip: str = LOOPBACK) -> None:
        # A short path: sockets lie in it, whose names are bounded.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.ip = ip
        self.token = secrets.token_hex(24)
        self.nodes: list[subprocess.Popen[bytes]] = []
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
        port, dashboard = free_port(), free_port()
        self.address, self.dashboard = f"{self.ip}:{port}", f"http://{LOOPBACK}:{dashboard}"
        ports = [
            "--head",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={free_port()}",
        ]
        self._start_node([*ports, "--include-dashboard=true"], cpus, resources, (), self.ip)
        self._wait_for_head()

    def add_node(
        self,
        cpus: float,
        resources: dict[str, float] | None = None,
        command: tuple[str, ...] = (),
        ip: str = LOOPBACK,
    ) -> "subprocess.Popen[bytes]":
        """One more node; `command` is what `ray start` is called through, such as `unshare`. Returns when the
        cluster knows it.
        """
        before = {node["node_id"] for node in self.alive_nodes()}
        node = self._start_node([f"--address={self.address}"], cpus, resources, command, ip)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not {node["node_id"] for node in self.alive_nodes()} - before:
            assert node.poll() is None, f"the node ended: {self._log()}"
            assert time.monotonic() < deadline, f"the node did not join: {self._log()}"
            time.sleep(0.3)
        return node

    def kill_node(self, node: "subprocess.Popen[bytes]") -> None:
        """kill -9 of a node: its raylet and all actors on it."""
        kill_tree(node)
        self.nodes.remove(node)

    def alive_nodes(self) -> list[dict]:
        """What the cluster knows of its nodes, each with `node_id` and `resources_total`."""
        nodes = self._get("/api/v0/nodes?detail=1&limit=1000")["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]

    def processes(self) -> list[psutil.Process]:
        """All processes of all nodes."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(node.pid)
                found += [root, *root.children(recursive=True)]
        return found

    @property
    def metrics_file(self) -> Path:
        """The nodes' metrics addresses, for Prometheus."""
        return self.folder / "0" / "prom_metrics_service_discovery.json"

    def stop(self) -> None:
        """End all nodes and delete their files."""
        for node in reversed(self.nodes):
            kill_tree(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_node(
        self,
        arguments: list[str],
        cpus: float,
        resources: dict[str, float] | None,
        command: tuple[str, ...],
        ip: str,
    ) -> "subprocess.Popen[bytes]":
        ray = str(Path(sys.executable).parent / "ray")
        # Each with its own files, as on machines of their own: nodes unpack a job's code where the others
        # would be reading it.
        files = f"--temp-dir={self.folder / str(self.started)}"
        self.started += 1
        given = [
            files,
            f"--num-cpus={cpus}",
            f"--resources={json.dumps(resources or {})}",
            f"--node-ip-address={ip}",
            "--block",
        ]
        more = [f"--object-store-memory={200 * 2**20}", "--disable-usage-stats"]
        more += [f"--{name}={free_port()}" for name in ("metrics-export-port", "dashboard-agent-listen-port")]
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
        deadline = time.monotonic() + START_TIMEOUT_S
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


class Network:
    """A network namespace with one link to this machine. Needs root.

    Raises:
        OSError, subprocess.CalledProcessError: This process may make none.
    """

    def __init__(self) -> None:
        subnet = f"10.77.{os.getpid() % 256}"
        self.here, self.there = f"{subnet}.1", f"{subnet}.2"
        """Addresses of the two ends."""
        self.name = f"laser-{os.getpid()}"
        self.link = f"laser{os.getpid() % 10**7}"
        self.command = ("ip", "netns", "exec", self.name)
        """What runs a program within it."""
        self.is_cut = False
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self.link, "type", "veth", "peer", "name", "there", "netns", self.name)
            _ip("addr", "add", f"{self.here}/24", "dev", self.link)
            _ip("link", "set", self.link, "up")
            for arguments in (
                ("addr", "add", f"{self.there}/24", "dev", "there"),
                ("link", "set", "there", "up"),
                ("link", "set", "lo", "up"),
                ("route", "add", "default", "via", self.here),
            ):
                subprocess.run([*self.command, "ip", *arguments], check=True, capture_output=True)
        except BaseException:
            self.remove()
            raise

    def cut(self) -> None:
        """Nothing passes the link."""
        self.is_cut = True
        subprocess.run([*self.command, "ip", "link", "set", "there", "down"], check=True, capture_output=True)

    def join(self) -> None:
        """The link is as it was before `cut`."""
        for arguments in (("link", "set", "there", "up"), ("route", "replace", "default", "via", self.here)):
            subprocess.run([*self.command, "ip", *arguments], check=True, capture_output=True)
        self.is_cut = False

    def remove(self) -> None:
        """Delete it; processes within it keep what they have."""
        for arguments in (("link", "del", self.link), ("netns", "del", self.name)):
            subprocess.run(["ip", *arguments], check=False, capture_output=True)


def kill_tree(process: "subprocess.Popen") -> None:
    """kill -9 of a process and everything that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for victim in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
    process.wait()


def free_port() -> int:
    """A port that nobody listens on now. It is none of those that the system gives to connections, since one
    of these would soon be taken.
    """
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
