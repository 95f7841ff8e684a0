"""From a configuration here to a job on a cluster: refuse what cannot work, see what the image lacks, send.

In: a configuration file, overrides, a cluster. Out: the id of a queued job, or a `ConfigError` before
anything is queued.
"""

import importlib.metadata
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.cluster.nodes import Resources
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.jobs.client import KIND_KEY, RUN_KEY, Cluster, is_local
from orchestrator.jobs.image import REPOSITORY, command, missing_requirements, pip_environment
from orchestrator.jobs.staging import DISTRIBUTION, Job, load_job, stage
from orchestrator.shown_text import without_password
from orchestrator.terminal import program, say_line

DEFAULT_STORAGE = "~/laser"
STOP_WAIT_S = 600
"""Seconds that a stopped job has for its checkpoint before Ray kills it."""
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


def submit(
    config_file: Path,
    overrides: list[str],
    address: str | None = None,
    storage: str = DEFAULT_STORAGE,
    check_placement: bool = True,
    say: Callable[[str], None] = say_line,
) -> tuple[Cluster, str]:
    """Send a training run, a sweep or an evaluation to a cluster, which queues it.

    Args:
        address: As of `Cluster`.
        storage: Folder on the cluster for results with relative paths. With several nodes, all must mount it.
        check_placement: Refuse a job that the cluster's nodes could never hold.

    Returns:
        The cluster, and the job's id.

    Raises:
        ConfigError: The configuration is refused, a file that it names is missing or too large, the cluster
            cannot be used or could never hold the job, or the same run is already there. Nothing has been
            started.
    """
    job = load_job(config_file, overrides)
    if not storage.startswith(("/", "~")) or "://" in storage:
        raise ConfigError(
            f"--storage: {storage} is no absolute path; name a folder on the cluster, such as "
            f"{DEFAULT_STORAGE}"
        )
    _refuse_unfit_models(job)
    tracking_server = _tracking_server(job)
    cluster = Cluster(address)
    _refuse_second(cluster, job)
    nodes = cluster.nodes()
    if check_placement:
        _refuse_unplaceable(cluster, job, nodes)
    _warn_of_tracking(job, cluster, tracking_server, say)
    # Every process of the job gets these variables, and every user of the cluster can read them.
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    if tracking_server and not job.tracking.uri:
        variables[TRACKING_VARIABLE] = tracking_server
    with tempfile.TemporaryDirectory(prefix="laser-job-") as folder:
        stage(job, storage, Path(folder))
        runtime_env = {"working_dir": folder, "env_vars": variables}
        job_id = _send(cluster, job, runtime_env, any(node.get("GPU") for node in nodes), say)
    say(f"submitted {job_id} to {cluster.address}")
    on_cluster = job.folder.is_absolute() or str(job.folder).startswith("~")
    results = job.folder if on_cluster else Path(storage) / job.folder
    for line in (f"results   {results}   on the cluster", *commands(cluster, job_id)):
        say(line)
    return cluster, job_id


def commands(cluster: Cluster, job_id: str) -> tuple[str, str]:
    """Two lines with the commands that follow and stop a job."""
    laser = program("laser")
    return (
        f"follow    {laser} jobs logs -f {job_id}{cluster.option}",
        f"stop      {laser} jobs stop {job_id}{cluster.option}",
    )


def _send(
    cluster: Cluster, job: Job, runtime_env: dict[str, Any], with_gpus: bool, say: Callable[[str], None]
) -> str:
    """Queue a staged job, with an environment for it where the cluster's image lacks requirements; its id."""
    missing = missing_requirements(cluster, runtime_env, with_gpus)
    if missing:
        say(
            f"the cluster's image lacks {', '.join(missing)}: Ray installs them for this job, which takes "
            "minutes the first time"
        )
        runtime_env = runtime_env | {"pip": pip_environment(missing, with_gpus)}
    job_id = f"{_slug(job.name)}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    metadata = {
        RUN_KEY: job.name,
        KIND_KEY: job.kind,
        "laser.version": importlib.metadata.version(DISTRIBUTION),
        **_commit(),
    }
    cluster.submit(
        job_id, command("orchestrator.cli job", in_own_environment=bool(missing)), runtime_env, metadata
    )
    return job_id


def _refuse_unfit_models(job: Job) -> None:
    """Refuse a model of this machine that does not fit its settings, before the cluster starts anything.

    The cluster's own models are checked there, by the job.
    """
    from orchestrator.data.tokens import refuse_unfit_model  # imports transformers, which takes seconds

    for config in job.runs:
        if isinstance(config, RunConfig) and (Path(config.model.path) / "config.json").is_file():
            refuse_unfit_model(config)


def _tracking_server(job: Job) -> str | None:
    """The MLflow server that the configuration or the environment names; None where that is a file."""
    uri, source = (
        (job.tracking.uri, "tracking.uri")
        if job.tracking.uri
        else (os.environ.get(TRACKING_VARIABLE), TRACKING_VARIABLE)
    )
    if not uri or uri.startswith(("sqlite:", "file:", "/", ".")):
        return None
    if without_password(uri) != uri:
        raise ConfigError(
            f"{source}: {without_password(uri)} holds a password, which every user of the cluster could read "
            "in the job. Leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where "
            "the cluster's nodes are started"
        )
    return uri


def _warn_of_tracking(job: Job, cluster: Cluster, server: str | None, say: Callable[[str], None]) -> None:
    """Say where the metrics go if that is not where the address here suggests."""
    if server and is_local(server) and not cluster.is_local:
        say(f"note: on the cluster {server} is the head node itself, not this machine")
    if not server and not job.tracking.uri and os.environ.get(TRACKING_VARIABLE):
        say(
            f"note: {TRACKING_VARIABLE} names a file of this machine; on the cluster metrics go to mlflow.db "
            "beside the run"
        )


def _refuse_second(cluster: Cluster, job: Job) -> None:
    for other in cluster.jobs():
        if other.metadata[RUN_KEY] == job.name and not other.status.is_terminal():
            raise ConfigError(
                f"{job.name} is on {cluster.address} already: {other.submission_id} is {other.status.value}. "
                "Choose another name, or\n  " + "\n  ".join(commands(cluster, other.submission_id))
            )


def _refuse_unplaceable(cluster: Cluster, job: Job, nodes: list[Resources]) -> None:
    try:
        job.refuse_too_large(nodes)
    except ConfigError as error:
        raise ConfigError(
            f"{cluster.address}, with {len(nodes)} node{'s' if len(nodes) != 1 else ''}, could never place "
            f"{job.name}: {error}\n(Add --no-placement-check for a cluster that adds nodes on demand.)"
        ) from error


def _commit() -> dict[str, str]:
    """The code's commit, and whether the code has been changed since; empty outside of a checkout."""

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
    """A name with the characters that a job's id may have."""
    return re.sub(r"[^a-zA-Z0-9.]+", "-", name)
