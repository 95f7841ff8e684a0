"""From a configuration here to a job on a cluster: refuse what cannot work, see what its image lacks, send.

In: a configuration file, overrides, a cluster. Out: the id of a job that is queued there, or a `ConfigError` before anything is.
"""

import importlib.metadata
import json
import os
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.job_submission import JobStatus

from orchestrator.cluster.nodes import Resources
from orchestrator.errors import ConfigError
from orchestrator.jobs.client import KIND, RUN, Cluster, is_local
from orchestrator.jobs.probe import MARK
from orchestrator.jobs.staging import DISTRIBUTION, LAUNCHER, Work, load_work, stage
from orchestrator.terminal import program

DEFAULT_STORAGE = "~/laser"
STOP_WAIT_S = 600
"""What a job that is stopped has for its checkpoint before it is killed."""
PROBE_TIMEOUT_S = 120.0
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
REPOSITORY = Path(__file__).parents[2]


def submit(
    config_file: Path,
    overrides: list[str],
    address: str | None = None,
    storage: str = DEFAULT_STORAGE,
    check_placement: bool = True,
    say: Callable[[str], None] = print,
) -> tuple[Cluster, str]:
    """Send a training run, a sweep or an evaluation to a cluster, where it is queued.

    Args:
        address: As of `Cluster`.
        storage: Folder on the cluster that relative paths of results go into; on several nodes one that all have mounted.
        check_placement: Refuse what the nodes that are there could never hold.

    Returns:
        The cluster, and the job's id.

    Raises:
        ConfigError: The configuration is refused, a file that it names is missing or too large, the cluster cannot be used or could never
            place it, or the same run is on it already. Nothing has been started then.
    """
    work = load_work(config_file, overrides)
    if not storage.startswith(("/", "~")) or "://" in storage:
        raise ConfigError(
            f"--storage: {storage} is no absolute path; name a folder on the cluster, such as {DEFAULT_STORAGE}"
        )
    uri = _tracking_uri(work)
    cluster = Cluster(address)
    _refuse_second(cluster, work)
    nodes = cluster.nodes()
    if check_placement:
        _refuse_unplaceable(cluster, work, nodes)
    if uri and is_local(uri) and not cluster.is_local:
        say(f"note: on the cluster {uri} is the head node itself, not this machine")
    if not uri and not work.tracking.uri and os.environ.get(TRACKING_VARIABLE):
        say(
            f"note: {TRACKING_VARIABLE} names a file of this machine; on the cluster metrics go to mlflow.db beside the run"
        )

    # What every process of the job has, and everybody can read who may use the cluster.
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    if uri and not work.tracking.uri:
        variables[TRACKING_VARIABLE] = uri
    with tempfile.TemporaryDirectory(prefix="laser-job-") as folder:
        stage(work, storage, Path(folder))
        runtime_env: dict[str, Any] = {"working_dir": folder, "env_vars": variables}
        with_gpus = any(node.get("GPU") for node in nodes)
        lacking = _lacking(cluster, runtime_env, with_gpus)
        if lacking:
            say(
                f"the cluster's image lacks {', '.join(lacking)}: installed for this job, which takes minutes the first time"
            )
            # DeepSpeed is built against the torch that is there, and torch's build without CUDA is not on PyPI.
            options = [
                "--no-build-isolation",
                *([] if with_gpus else ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]),
            ]
            runtime_env["pip"] = {"packages": lacking, "pip_install_options": options}
        job_id = f"{_slug(work.name)}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        metadata = {
            RUN: work.name,
            KIND: work.kind,
            "laser.version": importlib.metadata.version(DISTRIBUTION),
            **_commit(),
        }
        cluster.submit(
            job_id, _command("orchestrator.cli job", in_own_environment=bool(lacking)), runtime_env, metadata
        )
    say(f"submitted {job_id} to {cluster.address}")
    results = work.folder if work.folder.is_absolute() else Path(storage) / work.folder
    for line in (f"results   {results}   on the cluster", *commands(cluster, job_id)):
        say(line)
    return cluster, job_id


def commands(cluster: Cluster, job_id: str) -> tuple[str, str]:
    """Lines that tell how to follow and how to stop a job."""
    laser = program("laser")
    return (
        f"follow    {laser} jobs logs -f {job_id}{cluster.option}",
        f"stop      {laser} jobs stop {job_id}{cluster.option}",
    )


def _tracking_uri(work: Work) -> str | None:
    """The MLflow server that is named here, in the configuration or the environment; none where that is a file."""
    uri, source = (
        (work.tracking.uri, "tracking.uri")
        if work.tracking.uri
        else (os.environ.get(TRACKING_VARIABLE), TRACKING_VARIABLE)
    )
    if not uri or uri.startswith(("sqlite:", "file:", "/", ".")):
        return None
    from orchestrator.tracking.server import without_password  # with MLflow, which takes seconds

    if without_password(uri) != uri:
        raise ConfigError(
            f"{source}: {without_password(uri)} holds a password, which everybody who may use the cluster could read with the job. Leave "
            "it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the cluster's nodes are started"
        )
    return uri


def _refuse_second(cluster: Cluster, work: Work) -> None:
    for job in cluster.jobs():
        if job.metadata[RUN] == work.name and not job.status.is_terminal():
            raise ConfigError(
                f"{work.name} is on {cluster.address} already: {job.submission_id} is {job.status.value}. Choose another name, or\n  "
                + "\n  ".join(commands(cluster, job.submission_id))
            )


def _refuse_unplaceable(cluster: Cluster, work: Work, nodes: list[Resources]) -> None:
    try:
        work.refuse_what_no_node_holds(nodes)
    except ConfigError as error:
        raise ConfigError(
            f"{cluster.address}, with {len(nodes)} node{'s' if len(nodes) != 1 else ''}, could never place {work.name}: {error}\n"
            "(--no-placement-check submits all the same, to a cluster that adds nodes on demand.)"
        ) from error


def _lacking(cluster: Cluster, runtime_env: dict[str, Any], with_gpus: bool) -> list[str]:
    """Requirements that the image of the cluster's head does not meet, pinned as here: a small job of the same environment tells."""
    job_id = f"laser-probe-{secrets.token_hex(6)}"
    cluster.submit(job_id, _command("orchestrator.jobs.probe"), runtime_env, {})
    try:
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        while not (job := cluster.job(job_id)).status.is_terminal():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{cluster.address} has not started a small job within {PROBE_TIMEOUT_S:g} s: is its head overloaded?"
                )
            time.sleep(0.2)
        log = cluster.log(job_id)
    except BaseException:
        cluster.stop(job_id)
        raise
    found = next((line.removeprefix(MARK) for line in log.splitlines() if line.startswith(MARK)), None)
    cluster.forget(job_id)
    if job.status is not JobStatus.SUCCEEDED or found is None:
        raise ConfigError(
            f"{cluster.address} cannot run our code ({job.status.value}): {(log or job.message or '').strip()[-1000:]}"
        )
    unmet = json.loads(found)
    engine = unmet["gpu" if with_gpus else "cpu"] if unmet["cpu"] and unmet["gpu"] else []
    if any(Requirement(requirement).name == "ray" for requirement in unmet["all"]):
        raise ConfigError(
            f"{cluster.address} runs jobs with another Python than Ray's own: start Ray with its environment activated"
        )
    return [_pinned(requirement) for requirement in [*unmet["all"], *engine]]


def _pinned(requirement: str) -> str:
    """The requirement at the version of requirements.lock, in a checkout that has one."""
    lock, name = REPOSITORY / "requirements.lock", Requirement(requirement).name
    for line in lock.read_text().splitlines() if lock.exists() else ():
        if canonicalize_name(line.partition("==")[0]) == canonicalize_name(name):
            return line
    return requirement


def _command(module: str, in_own_environment: bool = False) -> str:
    """What Ray runs: a module with its arguments. In an environment that Ray makes for the job, its PATH has the Python."""
    return f"python -m {module}" if in_own_environment else f"exec sh {LAUNCHER} {module}"


def _commit() -> dict[str, str]:
    """The commit that the code is of, and whether it has been changed since; nothing when it is no checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != REPOSITORY:
            return {}
        return {
            "laser.commit": git("rev-parse", "HEAD"),
            "laser.dirty": "true" if git("status", "--porcelain") else "false",
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def _slug(name: str) -> str:
    """A name as it may stand in a job's id."""
    return re.sub(r"[^a-zA-Z0-9.]+", "-", name)
