"""What the cluster's image lacks of our requirements, and how Ray installs it for one job."""

import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.job_submission import JobStatus

from orchestrator.errors import ConfigError
from orchestrator.jobs.client import Cluster
from orchestrator.jobs.probe import REQUIREMENTS_MARK
from orchestrator.jobs.staging import LAUNCHER

PROBE_TIMEOUT_S = 120.0
REPOSITORY = Path(__file__).parents[2]
"""The checkout that this code is in, if it is one."""


def missing_requirements(cluster: Cluster, runtime_env: dict[str, Any], with_gpus: bool) -> list[str]:
    """The requirements that the image of the cluster's head lacks, pinned to the versions of this checkout.

    Args:
        runtime_env: The runtime environment of the job, in which a small job looks.
        with_gpus: Whether vLLM's GPU build is needed, or its CPU build.

    Raises:
        ConfigError: The cluster cannot run our code.
    """
    unmet = json.loads(_probe(cluster, runtime_env))
    engine = unmet["gpu" if with_gpus else "cpu"] if unmet["cpu"] and unmet["gpu"] else []
    if any(Requirement(requirement).name == "ray" for requirement in unmet["all"]):
        raise ConfigError(
            f"{cluster.address} runs jobs with another Python than Ray's own: start Ray with its environment "
            "activated"
        )
    return [pinned(requirement) for requirement in [*unmet["all"], *engine]]


def pip_environment(requirements: Sequence[str], with_gpus: bool) -> dict[str, Any]:
    """The `pip` section of Ray's runtime environment that installs these requirements."""
    # DeepSpeed is built against the installed torch. Torch's build without CUDA is not on PyPI.
    options = ["--no-build-isolation"]
    if not with_gpus:
        options += ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    return {"packages": list(requirements), "pip_install_options": options}


def pinned(requirement: str) -> str:
    """The requirement at its version in `requirements.lock`, if this is a checkout and the lock has it."""
    lock, name = REPOSITORY / "requirements.lock", Requirement(requirement).name
    for line in lock.read_text().splitlines() if lock.exists() else ():
        if canonicalize_name(line.partition("==")[0]) == canonicalize_name(name):
            return line
    return requirement


def command(module: str, in_own_environment: bool = False) -> str:
    """The shell command with which Ray runs a module.

    Args:
        in_own_environment: Ray makes an environment for the job, whose Python is first in its PATH.
    """
    return f"python -m {module}" if in_own_environment else f"exec sh {LAUNCHER} {module}"


def _probe(cluster: Cluster, runtime_env: dict[str, Any]) -> str:
    """The result of `probe`, run as a small job that is deleted afterwards."""
    job_id = f"laser-probe-{secrets.token_hex(6)}"
    cluster.submit(job_id, command("orchestrator.jobs.probe"), runtime_env, {})
    try:
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        while not (job := cluster.job(job_id)).status.is_terminal():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{cluster.address} has not run a small job within {PROBE_TIMEOUT_S:g} s: is its head "
                    "overloaded?"
                )
            time.sleep(0.2)
        log = cluster.log(job_id)
    except BaseException:
        cluster.stop(job_id)
        raise
    cluster.delete(job_id)
    for line in log.splitlines():
        if job.status is JobStatus.SUCCEEDED and line.startswith(REQUIREMENTS_MARK):
            return line.removeprefix(REQUIREMENTS_MARK)
    raise ConfigError(
        f"{cluster.address} cannot run our code ({job.status.value}): "
        f"{(log or job.message or '').strip()[-1000:]}"
    )
