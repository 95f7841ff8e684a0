"""Real Ray, vLLM, DeepSpeed and MLflow on the quick-start's tiny model: fixtures shared by the end-to-end
tests.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from benchmarks.chaos.nodes import RayCluster, kill_tree
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
