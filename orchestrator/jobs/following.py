"""A job followed from here: its log, each line once, with its steps in a panel in a terminal.

The job runs whether or not it is followed. A connection that breaks is opened again, and only the cluster
says that a job has ended.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Self

import aiohttp
from ray.job_submission import JobDetails, JobStatus
from rich.console import Console

from orchestrator.errors import ConfigError, RunError
from orchestrator.jobs.client import KIND_KEY, RUN_KEY, Cluster
from orchestrator.terminal import RunProgress, SafeConsole, StepLine, say_line

POLL_S = 0.5
RECONNECT_S = 2.0
GIVE_UP_S = 600.0
"""Seconds without an answer after which following ends. The job may still run."""
QUIET_S = 60.0
"""Seconds without a line after which the connection is opened again: a dead connection may look alive."""
CONNECTION_ERRORS = (ConfigError, RuntimeError, aiohttp.ClientError, OSError)


def follow(cluster: Cluster, job: JobDetails, console: Console | None = None) -> None:
    """Show a job's log until the job has succeeded.

    Raises:
        RunError: The job failed or was stopped, or the cluster did not answer for `GIVE_UP_S`.
    """
    with LogView(job.metadata[RUN_KEY], console) as view:
        asyncio.run(_show(cluster, job.submission_id, view))
    ended = cluster.job(job.submission_id)
    if ended.status is not JobStatus.SUCCEEDED:
        # The log says why, unless the driver never started.
        why = (
            f" with exit status {ended.driver_exit_code}"
            if ended.driver_exit_code is not None
            else f": {ended.message}"
        )
        raise RunError(
            f"{job.submission_id} {ended.status.value}{why if ended.status is JobStatus.FAILED else ''}"
        )


def readable(log: str) -> str:
    """A job's log with its step records as text, as `laser train` prints them."""
    return "\n".join(str(StepLine.from_record(line) or line) for line in log.split("\n"))


class LogView:
    """Prints lines; in a terminal it shows steps in the panel of `laser train`."""

    def __init__(self, title: str, console: Console | None) -> None:
        self.title = title
        self.console = console or SafeConsole(highlight=False)
        self.panel: RunProgress | None = None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def show(self, line: str) -> None:
        step = StepLine.from_record(line)
        if step is None or not self.console.is_terminal:
            self.console.print(str(step or line), markup=False, soft_wrap=True)
            return
        if self.panel is None:
            self.panel = self.stack.enter_context(
                RunProgress(self.title, step.total, step.step - 1, self.console)
            )
        self.panel.step(step.step, step.values, step.eta)
        if step.step == step.total:  # the lines after the last step belong below the panel
            self.stack.close()


async def _show(cluster: Cluster, job_id: str, view: LogView) -> None:
    async for line in log_lines(cluster, job_id, view.show):
        view.show(line)


async def log_lines(cluster: Cluster, job_id: str, say: Callable[[str], None]) -> AsyncIterator[str]:
    """The lines of a job's log until its end, each once.

    Args:
        say: Called with a message when the connection breaks.

    Raises:
        RunError: The cluster did not answer for `GIVE_UP_S`.
    """
    seen, rest, lost_at = 0, "", None
    while True:
        position, complete = 0, False  # each connection starts with the log's first line
        try:
            async with contextlib.aclosing(cluster.client.tail_job_logs(job_id)) as tail:
                with contextlib.suppress(TimeoutError):
                    while (text := await asyncio.wait_for(anext(tail, None), QUIET_S)) is not None:
                        lost_at = None
                        fresh = text[max(0, seen - position) :]
                        position, seen = position + len(text), seen + len(fresh)
                        *lines, rest = (rest + fresh).split("\n")
                        for line in lines:
                            yield line
                    complete = True
            if cluster.job(job_id).status.is_terminal() and complete:
                break
            lost_at = None
        except CONNECTION_ERRORS as error:
            ended = False
            with contextlib.suppress(*CONNECTION_ERRORS):  # perhaps only the log is out of reach
                ended = cluster.job(job_id).status.is_terminal()
            if lost_at is None:
                lost_at = time.monotonic()
                say(f"lost the connection to {cluster.address}; reconnecting")
            elif ended and time.monotonic() - lost_at > QUIET_S:
                break
            elif time.monotonic() - lost_at > GIVE_UP_S:
                raise RunError(
                    f"{cluster.address} has not answered for {GIVE_UP_S:g} s. Follow the job again with "
                    f"laser jobs logs -f {job_id}{cluster.option}"
                ) from error
        await asyncio.sleep(RECONNECT_S)
    if rest:
        yield rest


def stop(cluster: Cluster, name: str, say: Callable[[str], None] = say_line) -> None:
    """Stop a job and wait for its end. A training run saves a checkpoint first.

    Args:
        name: The job's id, or the run's name.

    Raises:
        ConfigError: No job has this id or name, or the cluster does not answer.
    """
    job = cluster.find(name)
    if not job.status.is_terminal():
        cluster.stop(job.submission_id)
        saves = "; the run saves a checkpoint" if job.metadata[KIND_KEY] == "train" else ""
        say(f"stopping {job.submission_id}, waiting for its end{saves}")
    while not job.status.is_terminal():
        time.sleep(POLL_S)
        job = cluster.job(job.submission_id)
    say(f"{job.submission_id} {job.status.value}")
