"""The job server of a Ray cluster, over HTTP with the cluster's token: nodes, jobs, requests.

Every failure of the connection is a `ConfigError` that says what to do.
"""

import contextlib
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import requests
from ray.job_submission import JobDetails, JobSubmissionClient

from orchestrator.cluster.nodes import Resources
from orchestrator.config.proxies import proxy_variable, spare_this_machine
from orchestrator.errors import ConfigError
from orchestrator.storage.addresses import why_silent

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
REQUEST_TIMEOUT_S = 10.0
RUN_KEY, KIND_KEY = "laser.run", "laser.kind"
"""Metadata of our jobs, which other jobs do not have."""


class Cluster:
    """A Ray cluster that takes jobs.

    Args:
        address: Address of its dashboard. None means RAY_API_SERVER_ADDRESS, and without it this machine.

    Raises:
        ConfigError: The cluster does not answer, refuses this machine's token, or runs another Ray or Python
            than this environment.
    """

    def __init__(self, address: str | None = None) -> None:
        self.option = f" --address {address}" if address else ""
        """The address as an option, for commands shown to the user."""
        variable = os.environ.get(ADDRESS_VARIABLE)
        self.source = "--address" if address else ADDRESS_VARIABLE if variable else "no setting, the default"
        self.address = _url(address or variable or DEFAULT_ADDRESS, self.source)
        self._headers, self._token_source = _token()
        spare_this_machine(self.address)
        if (reason := why_silent(self.address)) is not None:
            raise ConfigError(self._silence(reason))
        found = self._get("/api/v0/cluster_metadata")
        ours, theirs = platform.python_version(), found["pythonVersion"]
        if found["rayVersion"] != ray.__version__ or theirs.split(".")[:2] != ours.split(".")[:2]:
            raise ConfigError(
                f"{self.address} runs Ray {found['rayVersion']} on Python {theirs}, and this environment Ray "
                f"{ray.__version__} on Python {ours}: a job needs the same Ray and the same minor version of "
                "Python. Submit from such an environment, or start the cluster from one like this"
            )
        for name in (
            "ray.dashboard.modules.dashboard_sdk",
            "ray.dashboard.modules.job.sdk",
            "ray._private.runtime_env.packaging",
        ):
            logging.getLogger(name).setLevel(logging.ERROR)  # they report every upload and connection
        with _environment(ADDRESS_VARIABLE, self.address):  # this variable would override the argument
            self.client = JobSubmissionClient(self.address, headers=dict(self._headers))

    @property
    def is_local(self) -> bool:
        """Whether its address names this machine."""
        return is_local(self.address)

    def nodes(self) -> list[Resources]:
        """The resources of each live node, used ones included."""
        found = self._get("/api/v0/nodes?detail=1&limit=10000")["result"]["result"]
        return [node["resources_total"] for node in found if node["state"] == "ALIVE"]

    def jobs(self) -> list[JobDetails]:
        """Our jobs, newest first."""
        with self._answers():
            found = [job for job in self.client.list_jobs() if RUN_KEY in (job.metadata or {})]
        return sorted(found, key=lambda job: job.start_time or 0, reverse=True)

    def find(self, name: str) -> JobDetails:
        """The job with this id, or else the newest job of the run with this name.

        Raises:
            ConfigError: Neither exists.
        """
        jobs = self.jobs()
        for job in jobs:
            if job.submission_id == name:
                return job
        for job in jobs:
            if job.metadata[RUN_KEY] == name:
                return job
        raise ConfigError(
            f"{name}: no job and no run of this name at {self.address}; see laser jobs list{self.option}"
        )

    def job(self, job_id: str) -> JobDetails:
        """The job's current state."""
        with self._answers():
            return self.client.get_job_info(job_id)

    def log(self, job_id: str) -> str:
        """The job's log so far."""
        with self._answers():
            return self.client.get_job_logs(job_id)

    def submit(
        self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        """Queue a job that runs the shell command `entrypoint`."""
        with self._answers():
            self.client.submit_job(
                entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=metadata
            )

    def stop(self, job_id: str) -> None:
        """Ask Ray to stop a job."""
        with self._answers():
            self.client.stop_job(job_id)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended from the list."""
        with self._answers():
            self.client.delete_job(job_id)

    def _get(self, path: str) -> dict[str, Any]:
        with self._answers():
            reply = requests.get(self.address + path, headers=self._headers, timeout=REQUEST_TIMEOUT_S)
        if reply.status_code in (401, 403):
            raise ConfigError(self._refusal() + self._proxy_in_the_way())
        try:
            return reply.json()["data"]
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"{self.address} answers, but not as the dashboard of a Ray cluster (HTTP "
                f"{reply.status_code}): give the dashboard's address and port{self._proxy_in_the_way()}"
            ) from error

    def _proxy_in_the_way(self) -> str:
        """What to say of the proxy that requests go through; empty without one."""
        variable = proxy_variable(self.address)
        if variable is None:
            return ""
        host = urlsplit(self.address).hostname
        needs = " (a SOCKS proxy needs `pip install requests[socks]`)" if "socks" in variable else ""
        return f". A proxy is in the way, by {variable}: add {host} to no_proxy, or unset the variable{needs}"

    def _refusal(self) -> str:
        advice = (
            "`ray get-auth-token` on its head prints it. Write it to ~/.ray/auth_token here, or set "
            "RAY_AUTH_TOKEN to it, or RAY_AUTH_TOKEN_PATH to its file"
        )
        if not self._headers:
            return f"{self.address} needs the cluster's token, and this machine has none: {advice}"
        return (
            f"{self.address} refuses the token of {self._token_source}, which is another cluster's: {advice}"
        )

    def _silence(self, reason: str) -> str:
        return (
            f"{self.address}: no Ray cluster answers there ({reason}); the address is that of {self.source}. "
            f"Start one (ray start --head), name its dashboard with --address or {ADDRESS_VARIABLE}, or "
            f"forward its port (ssh -L 8265:127.0.0.1:8265 HEAD){self._proxy_in_the_way()}"
        )

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except requests.RequestException as error:
            raise ConfigError(self._silence(type(error).__name__)) from error
        except RuntimeError as error:
            # The job server's error holds a traceback from there, whose last line is the reason.
            raise ConfigError(f"{self.address}: {str(error).strip().splitlines()[-1]}") from error


def is_local(url: str) -> bool:
    """Whether a URL names this machine."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _url(address: str, source: str) -> str:
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{source}: {address} is not the address of a dashboard, such as {DEFAULT_ADDRESS}")
    return url


def _token() -> tuple[dict[str, str], str]:
    """The HTTP header with the cluster's token, and the token's source.

    The token is searched where Ray searches, in the same order.

    Ray's own client sends a token only with RAY_AUTH_MODE=token, but `ray start` uses a token without it.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return {}, ""
    token, source = os.environ.get("RAY_AUTH_TOKEN", "").strip(), "RAY_AUTH_TOKEN"
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        token, source = path.read_text().strip() if path.is_file() else "", str(path)
    return ({"Authorization": f"Bearer {token}"} if token else {}), source


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of this process for a call that takes it from nowhere else."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
