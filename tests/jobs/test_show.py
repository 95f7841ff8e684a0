"""Jobs as tables."""

from datetime import datetime

from ray.job_submission import JobDetails, JobStatus
from rich.console import Console

from orchestrator.jobs.show import show_job, show_jobs


def details(status, **fields):
    metadata = {"laser.run": "trial", "laser.kind": "train", "laser.version": "0.1.0"}
    return JobDetails(
        type="SUBMISSION", submission_id="trial-1", status=status, entrypoint="", metadata=metadata, **fields
    )


def test_jobs_are_shown(capsys):
    start = int(datetime(2026, 1, 2, 3, 4, 5).timestamp() * 1000)
    job = details(JobStatus.FAILED, start_time=start, end_time=start + 65_000, message="no [such] thing")
    job.metadata |= {"laser.commit": "0123456789abcdef", "laser.dirty": "true"}
    console = Console(width=120)
    show_jobs([job], console)
    show_job(job, console)
    show_jobs([], console)
    text = capsys.readouterr().out
    assert "trial-1  train  FAILED  2026-01-02 03:04:05  1:05" in text
    assert "code      version 0.1.0, commit 0123456789ab, changed since" in text
    assert "no [such] thing" in text
    assert text.endswith("no jobs\n")
