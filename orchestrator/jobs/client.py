"""The job server of a Ray cluster, over HTTP with the cluster's token: what is there, which jobs run, and orders to them.

Whatever goes wrong between here and there is a `ConfigError` that says what to do about it.
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
from orchestrator.errors import ConfigError

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_S = 10.0
RUN, KIND = "laser.run", "laser.kind"
"""Metadata of our jobs, which tells them from others."""


class Cluster:
    """A Ray cluster that takes jobs.

    Args:
        address: Of its dashboard; RAY_API_SERVER_ADDRESS, else this machine's, when None.

    Raises:
        ConfigError: It does not answer, does not take the token that is here, or runs another Ray or Python than this environment.
    """

    def __init__(self, address: str | None = None) -> None:
        self.option = f" --address {address}" if address else ""
        """For commands that a person is told."""
        self.address = _url(address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
        self._headers, self._token_source = _token()
        found = self._get("/api/v0/cluster_metadata")
        ours, theirs = platform.python_version(), found["pythonVersion"]
        if found["rayVersion"] != ray.__version__ or theirs.split(".")[:2] != ours.split(".")[:2]:
            raise ConfigError(
                f"{self.address} runs Ray {found['rayVersion']} on Python {theirs}, and this environment Ray {ray.__version__} on Python "
                f"{ours}: a job needs the same Ray and the same minor version of Python. Submit from such an environment, or start the "
                "cluster from one like this"
            )
        for name in (
            "ray.dashboard.modules.dashboard_sdk",
            "ray.dashboard.modules.job.sdk",
            "ray._private.runtime_env.packaging",
        ):
            logging.getLogger(name).setLevel(logging.ERROR)  # they tell each upload and each connection
        with _environment(ADDRESS_VARIABLE, self.address):  # which would override the argument
            self.client = JobSubmissionClient(self.address, headers=dict(self._headers))

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, as far as its address tells."""
        return is_local(self.address)

    def nodes(self) -> list[Resources]:
        """What each node that is there has in all."""
        found = self._get("/api/v0/nodes?detail=1&limit=10000")["result"]["result"]
        return [node["resources_total"] for node in found if node["state"] == "ALIVE"]

    def jobs(self) -> list[JobDetails]:
        """Our jobs, the newest first."""
        with self._answers():
            found = [job for job in self.client.list_jobs() if RUN in (job.metadata or {})]
        return sorted(found, key=lambda job: job.start_time or 0, reverse=True)

    def find(self, name: str) -> JobDetails:
        """The job with this id, else the newest of the run with this name. Raises ConfigError when there is neither."""
        jobs = self.jobs()
        for job in jobs:
            if job.submission_id == name:
                return job
        for job in jobs:
            if job.metadata[RUN] == name:
                return job
        raise ConfigError(
            f"{name}: no job and no run of this name at {self.address}; see laser jobs list{self.option}"
        )

    def job(self, job_id: str) -> JobDetails:
        """As it is now."""
        with self._answers():
            return self.client.get_job_info(job_id)

    def log(self, job_id: str) -> str:
        """What it has written so far."""
        with self._answers():
            return self.client.get_job_logs(job_id)

    def submit(
        self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        with self._answers():
            self.client.submit_job(
                entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=metadata
            )

    def stop(self, job_id: str) -> None:
        """Ask for its end."""
        with self._answers():
            self.client.stop_job(job_id)

    def forget(self, job_id: str) -> None:
        """Delete a job that is over from the list."""
        with self._answers():
            self.client.delete_job(job_id)

    def _get(self, path: str) -> dict[str, Any]:
        with self._answers():
            reply = requests.get(self.address + path, headers=self._headers, timeout=TIMEOUT_S)
        if reply.status_code in (401, 403):
            raise ConfigError(self._refusal())
        try:
            return reply.json()["data"]
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"{self.address} answers, but not as the dashboard of a Ray cluster (HTTP {reply.status_code}): give its address and port"
            ) from error

    def _refusal(self) -> str:
        advice = (
            "`ray get-auth-token` on its head prints it; put it into ~/.ray/auth_token here, or name it in RAY_AUTH_TOKEN or its file in "
            "RAY_AUTH_TOKEN_PATH"
        )
        if not self._headers:
            return f"{self.address} asks for the cluster's token, and none is here: {advice}"
        return f"{self.address} does not take the token of {self._token_source}: it is another cluster's. {advice[0].upper()}{advice[1:]}"

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except requests.RequestException as error:
            raise ConfigError(
                f"{self.address}: no Ray cluster answers there ({type(error).__name__}). Start one (ray start --head), name its dashboard "
                f"with --address or {ADDRESS_VARIABLE}, or forward its port (ssh -L 8265:127.0.0.1:8265 HEAD)"
            ) from error
        except (
            RuntimeError
        ) as error:  # of the job server: a traceback from there, of which the last line says what
            raise ConfigError(f"{self.address}: {str(error).strip().splitlines()[-1]}") from error


def is_local(url: str) -> bool:
    """Whether a URL names this machine."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _url(address: str) -> str:
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--address: {address} is no address of a dashboard, such as {DEFAULT_ADDRESS}")
    return url


def _token() -> tuple[dict[str, str], str]:
    """The header with the cluster's token, and where it was found: in the places where Ray looks, and in its order.

    Ray's own client sends it only under RAY_AUTH_MODE=token, which `ray start` does not need where there is a token.
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
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
