"""Jobs as tables for a person."""

import time
from collections.abc import Sequence
from datetime import datetime

from ray.job_submission import JobDetails, JobStatus
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.jobs.client import KIND_KEY, RUN_KEY
from orchestrator.terminal import SafeConsole, clock

JOB_COLOURS = {
    JobStatus.RUNNING: "cyan",
    JobStatus.SUCCEEDED: "green",
    JobStatus.FAILED: "red",
    JobStatus.STOPPED: "yellow",
}


def show_jobs(jobs: Sequence[JobDetails], console: Console | None = None) -> None:
    """Print a table with one job a line."""
    console = console or SafeConsole(highlight=False)
    table = Table("job", "kind", "status", "submitted", "took", box=None)
    for job in jobs:
        table.add_row(
            job.submission_id, escape(job.metadata[KIND_KEY]), _status(job), _time(job.start_time), _took(job)
        )
    console.print(table if jobs else "no jobs")


def show_job(job: JobDetails, console: Console | None = None) -> None:
    """Print a job's run, state, times and code version."""
    console = console or SafeConsole(highlight=False)
    metadata = job.metadata
    code = [f"version {metadata['laser.version']}"]
    if commit := metadata.get("laser.commit"):
        changed = ", changed since" if metadata["laser.dirty"] == "true" else ""
        code.append(f"commit {commit[:12]}{changed}")
    shown = {
        "job": job.submission_id,
        "run": escape(f"{metadata[RUN_KEY]} ({metadata[KIND_KEY]})"),
        "status": _status(job),
        "submitted": f"{_time(job.start_time)}, took {_took(job)}",
        "code": escape(", ".join(code)),
    }
    for name, value in shown.items():
        console.print(f"{name:<10}{value}", soft_wrap=True)
    if job.status in (JobStatus.PENDING, JobStatus.FAILED) and job.message:
        console.print(job.message, markup=False, soft_wrap=True)


def _status(job: JobDetails) -> str:
    colour = JOB_COLOURS.get(job.status, "dim")
    return f"[{colour}]{job.status.value}[/{colour}]"


def _time(milliseconds: int | None) -> str:
    return datetime.fromtimestamp((milliseconds or 0) / 1000).strftime("%Y-%m-%d %H:%M:%S")


def _took(job: JobDetails) -> str:
    return clock((job.end_time or time.time() * 1000) / 1000 - (job.start_time or 0) / 1000)
