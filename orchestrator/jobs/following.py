"""A job as it is followed from here: its log, each line once, and in a terminal its steps as the panel of a run.

The job runs on whatever happens here: a connection that breaks is opened again, and only the cluster says that the job has ended.
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
from orchestrator.jobs.client import KIND, RUN, Cluster
from orchestrator.terminal import RunProgress, StepLine

POLL_S = 0.5
RETRY_S = 2.0
GIVE_UP_S = 600.0
"""Without an answer for so long, following ends; the job may well go on."""
QUIET_S = 60.0
"""After so long without a line the connection is opened anew: one that is dead may not look so."""
LOST = (ConfigError, RuntimeError, aiohttp.ClientError, OSError)


def follow(cluster: Cluster, job: JobDetails, console: Console | None = None) -> None:
    """Show a job's log until the job has succeeded.

    Raises:
        RunError: It has failed, was stopped, or the cluster has not answered for `GIVE_UP_S`.
    """
    with _View(job.metadata[RUN], console) as view:
        asyncio.run(_show(cluster, job.submission_id, view))
    ended = cluster.job(job.submission_id)
    if ended.status is not JobStatus.SUCCEEDED:
        # The log has told why, unless there is none.
        why = (
            f" with exit status {ended.driver_exit_code}"
            if ended.driver_exit_code is not None
            else f": {ended.message}"
        )
        raise RunError(
            f"{job.submission_id} {ended.status.value}{why if ended.status is JobStatus.FAILED else ''}"
        )


class _View:
    """Lines as they come, and from the first step on, in a terminal, the panel that `laser train` shows there."""

    def __init__(self, title: str, console: Console | None) -> None:
        self.title, self.console = title, console or Console(highlight=False)
        self.panel: RunProgress | None = None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def show(self, line: str) -> None:
        step = StepLine.parse(line) if self.console.is_terminal else None
        if step is None:
            self.console.print(line, markup=False, soft_wrap=True)
            return
        if self.panel is None:
            self.panel = self.stack.enter_context(
                RunProgress(self.title, step.total, step.step - 1, self.console)
            )
        self.panel.step(step.step, step.values, step.eta)
        if step.step == step.total:  # what follows belongs below it
            self.stack.close()


async def _show(cluster: Cluster, job_id: str, view: _View) -> None:
    async for line in log_lines(cluster, job_id, view.show):
        view.show(line)


async def log_lines(cluster: Cluster, job_id: str, say: Callable[[str], None]) -> AsyncIterator[str]:
    """The lines of a job's log until its end, each once; `say` is told when the connection breaks. Raises RunError after `GIVE_UP_S`."""
    seen, rest, lost_at = 0, "", None
    while True:
        position, complete = 0, False  # each connection starts with the first line
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
        except LOST as error:
            ended = False
            with contextlib.suppress(*LOST):  # only its log may be out of reach
                ended = cluster.job(job_id).status.is_terminal()
            if lost_at is None:
                lost_at = time.monotonic()
                say(f"the connection to {cluster.address} is lost, and looked for again")
            elif ended and time.monotonic() - lost_at > QUIET_S:
                break
            elif time.monotonic() - lost_at > GIVE_UP_S:
                raise RunError(
                    f"{cluster.address} has not answered for {GIVE_UP_S:g} s; follow again with laser jobs logs -f {job_id}{cluster.option}"
                ) from error
        await asyncio.sleep(RETRY_S)
    if rest:
        yield rest


def stop(cluster: Cluster, name: str, say: Callable[[str], None] = print) -> None:
    """Ask the job `name`, an id or a run, to end, and wait until it has: a run makes a checkpoint first."""
    job = cluster.find(name)
    if not job.status.is_terminal():
        cluster.stop(job.submission_id)
        saves = ": a run makes a checkpoint" if job.metadata[KIND] == "train" else ""
        say(f"{job.submission_id} is asked to stop, and waited for{saves}")
    while not job.status.is_terminal():
        time.sleep(POLL_S)
        job = cluster.job(job.submission_id)
    say(f"{job.submission_id} {job.status.value}")
