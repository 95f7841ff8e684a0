"""`laser submit` and `laser jobs` against a real cluster with a token, as a user on another machine has them.

Its three nodes are processes with resources that force each pool onto another one.
"""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

LASER = str(Path(sys.executable).parent / "laser")
STEPS = 6
RAY_SETTINGS = {"RAY_max_direct_call_object_size": "1"}
"""Small results too lie in their node's object store, as a large model's do, and are lost with the node."""


@pytest.fixture(scope="module")
def home(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to submit from, with data and a model that the configuration names by relative path."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "data").symlink_to(task)
    (folder / "base").symlink_to(Path(__file__).parents[2] / "experiments" / "quickstart" / "base")
    tree = {
        "run": {"name": "tiny", "steps": STEPS},
        "model": {"path": "./base"},
        "data": {"train": "data/train.jsonl", "eval": "data/test.jsonl", "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4, "prompts_per_step": 4, "max_prompt_tokens": 80,
            "max_response_tokens": 40, "cpus": 0.5, "resources": {"rollout": 1},
            "engine_args": {"enforce_eager": True},
        },
        "verification": {"cpus": 0.25, "resources": {"verifier": 1}},
        "learning": {
            "cpus_per_rank": 0.25, "lr": 1e-3, "tokens_per_micro_batch": 1024, "resources": {"learner": 1},
        },
        "loss": {"alpha": 1.0, "reasoning_warmup_steps": 1, "self_reward_warmup_steps": 1},
        "self_reward": {"token": "<|self_reward|>", "calibration_samples": 50},
        "evaluation": {"samples_per_problem": 2},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return folder


class User:
    """A user with the token and a terminal in `home`."""

    def __init__(self, cluster, home: Path) -> None:
        self.cluster, self.home, self.storage = cluster, home, home / "storage"
        self.environment = {
            key: value
            for key, value in cluster.environment.items()
            if not key.startswith(("RAY_A", "MLFLOW_"))
        }
        self.environment |= {
            "RAY_AUTH_TOKEN": cluster.token,
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
            "COLUMNS": "200",
        }

    def laser(
        self, *arguments: str, timeout_s: float = 400, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LASER, *arguments], cwd=self.home, env=self.environment | environment,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def jobs(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        return self.laser("jobs", *arguments, "--address", self.cluster.dashboard, **options)

    def submit(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        address = ["--address", self.cluster.dashboard, "--storage", str(self.storage)]
        return self.laser("submit", "tiny.yaml", *address, *arguments, **options)

    def submitted(self, *arguments: str) -> str:
        """Id of a new job that nobody follows."""
        done = self.submit(*arguments, "--detach")
        assert done.returncode == 0, done.stderr
        first, *others = done.stdout.splitlines()
        job_id = first.split()[1]
        assert first == f"submitted {job_id} to {self.cluster.dashboard}"
        for line, order in zip(others[1:], ("logs -f", "stop"), strict=True):
            assert line.endswith(f"laser jobs {order} {job_id} --address {self.cluster.dashboard}")
        return job_id

    @contextlib.contextmanager
    def following(self, job: str) -> Iterator[subprocess.Popen[str]]:
        """`laser jobs logs -f` in another terminal."""
        command = [LASER, "jobs", "logs", "-f", job, "--address", self.cluster.dashboard]
        terminal = subprocess.Popen(
            command,
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield terminal
        finally:
            terminal.kill()
            terminal.wait()

    def wait_for(self, path: Path, job_id: str, timeout_s: float = 300) -> None:
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            assert time.monotonic() < deadline, self.jobs("logs", job_id).stdout
            time.sleep(0.1)


@pytest.fixture(scope="module")
def workers(cluster) -> dict[str, subprocess.Popen]:
    """The nodes beside the head, by what they are for."""
    return {name: cluster.add_node(1, {name: 2}) for name in ("rollout", "verifier")}


@pytest.fixture(scope="module")
def user(cluster, workers: dict[str, subprocess.Popen], home: Path) -> User:
    return User(cluster, home)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a refusal before anything was started."""
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.removeprefix("laser submit: ").removeprefix("laser jobs: ")


def steps_in(log: str) -> list[str]:
    """`1/4`, ... of the lines of steps in a log."""
    return re.findall(r"^step (\d+/\d+)  .*  ETA ", log, re.MULTILINE)


def test_a_stopped_job_continues_while_nodes_come_and_go_and_is_followed_from_elsewhere(
    user: User, workers: dict[str, subprocess.Popen], mlflow_server
) -> None:
    settings = (f"tracking.uri={mlflow_server.uri}", "run.save_rollouts_every=1")
    job_id = user.submitted(*settings, "run.steps=200")
    second = refused(user.submit())
    assert second.startswith(f"tiny is on {user.cluster.dashboard} already: {job_id} is ")
    assert f"laser jobs stop {job_id}" in second

    folder = user.storage / "runs" / "tiny"
    user.wait_for(folder / "rollouts" / "step-000002.parquet", job_id)
    began = time.monotonic()
    stopped = user.jobs("stop", "tiny")
    assert (stopped.returncode, stopped.stdout.splitlines()[-1]) == (0, f"{job_id} STOPPED"), stopped.stderr
    assert time.monotonic() - began < 60
    assert "stopped as asked; step" in (log := user.jobs("logs", job_id).stdout), log
    (checkpoint,) = (folder / "checkpoints").iterdir()
    reached = max(path.stem for path in (folder / "rollouts").iterdir())
    assert checkpoint.name == reached, "of the step that it had come to, though none was due"
    followed = user.jobs("logs", "-f", job_id)
    assert followed.returncode == 1
    assert followed.stderr == f"laser jobs: {job_id} STOPPED\n"

    done = int(reached.removeprefix("step-"))
    steps = done + STEPS
    continued_id = user.submitted(*settings, f"run.steps={steps}", "run.save_every=1")
    with user.following("tiny") as terminal:
        user.wait_for(folder / "checkpoints" / f"step-{done + 2:06d}", continued_id)
        for name in workers:
            user.cluster.kill_node(workers[name])
            workers[name] = user.cluster.add_node(1, {name: 2})
        log, _ = terminal.communicate(timeout=400)
    assert terminal.returncode == 0, log
    lines = log.splitlines()
    assert f"continuing from {checkpoint}" in log
    # A node that is lost with the data of the current step sends the run back to its newest checkpoint.
    assert list(dict.fromkeys(steps_in(log))) == [f"{step}/{steps}" for step in range(done + 1, steps + 1)]
    assert not [line for line in lines if "pid=" in line], "what actors print stays in their own logs"

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == steps
    client = MlflowClient(mlflow_server.uri)
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    for key in ("train/accuracy", "loss/total", "time/step"):
        logged = [point.step for point in client.get_metric_history(run.info.run_id, key)]
        assert logged == list(range(1, steps + 1)), key
    assert run.data.metrics["pool/restarts"] >= 2, "an engine and a verifier went with their nodes"
    page = f"{mlflow_server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert f"curves    {page}" in lines

    status = user.jobs("status", continued_id).stdout
    assert "run       tiny (train)" in status
    assert "status    SUCCEEDED" in status
    listed = user.jobs("list").stdout.splitlines()
    assert sorted(line.split()[:3] for line in listed[1:]) == sorted(
        [[job_id, "train", "STOPPED"], [continued_id, "train", "SUCCEEDED"]]
    ), "the probe is not left behind"
    assert user.jobs("logs", continued_id).stdout.split() == log.split(), "each line once"


def test_what_cannot_work_is_refused_before_anything_is_sent(user: User, tmp_path: Path) -> None:
    before = user.jobs("list").stdout
    wrong = refused(user.submit(RAY_AUTH_TOKEN="wrong"))
    assert "refuses the token of RAY_AUTH_TOKEN" in wrong
    assert "wrong" not in wrong
    missing = refused(user.submit(RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(tmp_path / "none")))
    assert "needs the cluster's token, and this machine has none: `ray get-auth-token`" in missing
    assert refused(user.laser("submit", "tiny.yaml")).startswith(
        "http://127.0.0.1:9: no Ray cluster answers there"
    )

    table = refused(user.submit("rollout.gpus=1", "run.name=large"))
    assert table.startswith(
        f"{user.cluster.dashboard}, with 3 nodes, could never place large: "
        "the pools need 1 GPU, but the cluster has 0:\n"
    )
    assert (
        "  rollout       1 engine(s) x (rollout.cpus=0.5, rollout.gpus=1 x rollout.tensor_parallel=1, "
        "rollout.resources={'rollout': 1.0})\n" in table
    )
    assert "--no-placement-check" in table

    secret = refused(user.submit("run.name=other", MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:5000"))
    assert "http://me:***@127.0.0.1:5000 holds a password" in secret
    assert "secret@" not in secret
    assert refused(user.jobs("logs", "nobody")).startswith("nobody: no job and no run of this name")
    assert user.jobs("list").stdout.splitlines()[0] == before.splitlines()[0]
    assert len(user.jobs("list").stdout.splitlines()) == len(before.splitlines()), "nothing has been sent"


def test_a_node_that_has_another_folder_is_named_before_anything_starts(user: User) -> None:
    user.storage.mkdir(exist_ok=True)
    another_disk = (
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs none "{user.storage}" && exec "$@"',
        "sh",
    )
    if subprocess.run([*another_disk, "true"], capture_output=True, check=False).returncode:
        pytest.skip(
            "a separate mount takes root, so the check of shared folders was not tried on a node without them"
        )
    user.cluster.add_node(1, {"alone": 1}, command=another_disk)
    done = user.submit("run.name=alone", "learning.resources={alone: 1}", "data.eval=null")
    assert done.returncode == 1
    assert f"{user.storage}/runs/alone is not the same folder there" in done.stdout
    assert "--storage" in done.stdout
    assert not list((user.storage / "runs" / "alone").glob(".shared*"))


@pytest.mark.long
def test_a_node_with_learner_and_colocated_engine_may_be_lost(user: User) -> None:
    both = user.cluster.add_node(1, {"both": 2})
    settings = (
        "run.name=turns",
        "run.save_every=2",
        "data.eval=null",
        "rollout.colocate=true",
        "rollout.resources={}",
        "rollout.cpus=0.25",
    )
    job_id = user.submitted(*settings, "learning.resources={both: 1}")
    folder = user.storage / "runs" / "turns"
    with user.following("turns") as terminal:
        user.wait_for(folder / "checkpoints" / "step-000002", job_id)
        user.cluster.kill_node(both)
        user.cluster.add_node(1, {"both": 2})
        log, _ = terminal.communicate(timeout=300)
    assert terminal.returncode == 0, log
    assert "restarting the ranks" in log
    assert list(dict.fromkeys(steps_in(log))) == [f"{step}/{STEPS}" for step in range(1, STEPS + 1)]
