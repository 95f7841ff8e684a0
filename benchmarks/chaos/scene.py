"""All that faults can strike: a cluster of two nodes, a run on it, MLflow, a small disk and a network.

The scene also does what an operator's programs do: it starts a node again that is gone, and the run's command
when it has ended with an error.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import requests

from benchmarks.chaos.nodes import LOOPBACK, Network, RayCluster, free_port, kill_tree

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "experiments/quickstart.yaml"
DISK_MIB = 400
NODE = {"engine": 1.0, "checker": 1.0}
"""Each node has room for an engine and a verifier; the ranks are on the head's."""
PLACES = (
    *("rollout.num_engines=2", "rollout.resources={engine: 1}"),
    *("verification.num_workers=2", "verification.resources={checker: 1}"),
    "learning.resources={head: 1}",
)


def _faketime() -> Path | None:
    """The library that gives a process another clock; None if its package is not installed."""
    package = importlib.util.find_spec("libfaketime")
    if package is None or package.origin is None:
        return None
    return next(Path(package.origin).parent.glob("**/libfaketime.so.1"), None)


FAKETIME = _faketime()


class Clock:
    """The wall clock of a process, which can step. Its monotonic clock does not, as on a real machine."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            # Seconds until it looks again. Without a pause threads disturb each other's look, which ends all.
            "FAKETIME_CACHE_DURATION": "2",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set_to(1)  # the library takes 0 for no number

    def set_to(self, ahead_s: int) -> None:
        """Step to so many seconds ahead of the true time, or behind it if negative."""
        partial = self._file.with_suffix(".partial")
        partial.write_text(f"{ahead_s:+d}")
        partial.rename(self._file)


class Scene:
    """A cluster and the run `name` on it.

    Args:
        folder: For everything that is written.
        name: The run's.
        settings: Of the run, beside those of the places.
    """

    def __init__(self, folder: Path, name: str, settings: Sequence[str]) -> None:
        self.folder = folder
        self.disk = folder / f"{name}-disk"
        self.disk.mkdir(parents=True)
        self.run = self.disk / name
        self.log = folder / f"{name}.log"
        self.settings = [*settings, *PLACES, f"run.dir={self.disk}", f"run.name={name}"]
        self.left_out: dict[str, str] = {}
        """Kinds of faults that this machine cannot have, and why."""
        self.has_small_disk = self._mount()
        self.network = self._network()
        self.clock = Clock(folder / f"{name}.clock") if FAKETIME is not None else None
        if self.clock is None:
            self.left_out["clock"] = "the package libfaketime is missing (pip install libfaketime)"
        self.mlflow_port = free_port()
        self.mlflow: subprocess.Popen[bytes] | None = None
        self.cluster: RayCluster | None = None
        self.node: subprocess.Popen[bytes] | None = None
        self.driver: subprocess.Popen[bytes] | None = None
        self.endings: list[tuple[float, int]] = []
        """Of the run's command: the time, and the exit status."""

    def start(self) -> None:
        """Start MLflow, the cluster and the run."""
        self.start_mlflow()
        self.start_cluster()
        self.start_driver()

    def start_mlflow(self) -> None:
        """Start the server on its old files and its old port; wait until it answers."""
        store = f"sqlite:///{self.folder}/{self.run.name}-mlflow.db"
        command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--workers", "1"]
        command += ["--port", str(self.mlflow_port), "--backend-store-uri", store]
        command += ["--artifacts-destination", str(self.folder / f"{self.run.name}-artifacts")]
        with self.log.with_suffix(".mlflow.log").open("ab") as log:
            self.mlflow = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.tracking}/health", timeout=5).ok:
                    return
            time.sleep(0.3)
        raise RuntimeError("the MLflow server does not answer")

    @property
    def tracking(self) -> str:
        """The MLflow server's address."""
        return f"http://{LOOPBACK}:{self.mlflow_port}"

    def start_cluster(self) -> None:
        """Start a new cluster, of a head and another node."""
        self.cluster = RayCluster(self.network.here if self.network else LOOPBACK)
        self.cluster.start(2, {"head": 2.0, **NODE})
        self.start_node()

    def start_node(self) -> None:
        """Start the other node anew, and end what is left of it. One that cannot reach a head is not started:
        `start_driver` and the end of the cut do it then.
        """
        assert self.cluster is not None
        if self.cluster.nodes[0].poll() is not None or (self.network is not None and self.network.is_cut):
            return
        if self.node is not None and self.node in self.cluster.nodes:
            self.cluster.kill_node(self.node)
        self.node = None
        command, ip = (self.network.command, self.network.there) if self.network else ((), LOOPBACK)
        self.node = self.cluster.add_node(2, NODE, command, ip)

    def start_driver(self) -> None:
        """Start the run's command; on a new cluster if the head is gone."""
        assert self.cluster is not None
        if self.cluster.nodes[0].poll() is not None:
            self.cluster.stop()
            self.node = None
            self.start_cluster()
        environment = self.cluster.environment | {
            "RAY_ADDRESS": self.cluster.address,
            "MLFLOW_TRACKING_URI": self.tracking,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        }
        if self.clock is not None:
            environment |= self.clock.environment
        command = [sys.executable, "-m", "orchestrator.cli", "train", str(CONFIG), *self.settings]
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)

    def actors(self, kind: str) -> list[psutil.Process]:
        """The processes of this kind of actor, such as `RolloutWorker`, that run."""
        return [process for process in self._running() if process.cmdline()[0].startswith(f"ray::{kind}")]

    def children(self, kind: str) -> list[psutil.Process]:
        """The processes that actors of this kind have started, and those that these have."""
        actors = self.actors(kind)
        return [one for actor in actors for one in actor.children(recursive=True) if is_running(one)]

    def daemons(self, program: str, node: "subprocess.Popen[bytes] | None") -> list[psutil.Process]:
        """The processes of this program of Ray's on a node."""
        if node is None or node.poll() is not None:
            return []
        below = psutil.Process(node.pid).children(recursive=True)
        return [one for one in below if is_running(one) and Path(one.cmdline()[0]).name == program]

    def leftovers(self) -> list[str]:
        """The run's actors that are alive."""
        kinds = ("RolloutWorker", "VerificationWorker", "LearnerRank")
        return [" ".join(process.cmdline()) for kind in kinds for process in self.actors(kind)]

    def fill_disk(self) -> None:
        """Leave no byte on the run's disk."""
        with (self.disk / "filler").open("wb") as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(2**16))
                filler.flush()

    def empty_disk(self) -> None:
        """Undo `fill_disk`."""
        (self.disk / "filler").unlink(missing_ok=True)

    def stop(self) -> None:
        """End everything. The run's files stay."""
        for process in (self.driver, self.mlflow):
            if process is not None:
                kill_tree(process)
        if self.cluster is not None:
            self.cluster.stop()
        if self.network is not None:
            self.network.remove()
        if self.has_small_disk:
            kept = self.folder / self.run.name
            subprocess.run(["cp", "-a", str(self.run), str(kept)], check=False)
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)
            self.run = kept

    def _running(self) -> list[psutil.Process]:
        return [] if self.cluster is None else [one for one in self.cluster.processes() if is_running(one)]

    def _mount(self) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(self.disk)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            self.left_out["disk"] = "this process may not mount a small disk (it needs root)"
            return False
        return True

    def _network(self) -> Network | None:
        try:
            return Network()
        except (OSError, subprocess.CalledProcessError):
            self.left_out["network"] = (
                "this process may not make a network namespace (it needs root and `ip`)"
            )
            return None


def is_running(process: psutil.Process) -> bool:
    """Whether it is neither gone nor a zombie, and has a command line."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and bool(process.cmdline())
    except psutil.NoSuchProcess:
        return False
