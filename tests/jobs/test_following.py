"""A job's log: each line once, steps as text or in a panel, and a connection that breaks."""

import asyncio
import io
from types import SimpleNamespace

from ray.job_submission import JobStatus
from rich.console import Console

from orchestrator.jobs.following import LogView, log_lines, readable
from orchestrator.terminal import StepLine

STEP = StepLine(
    5,
    23,
    {"train/accuracy": 0.5, "self_reward/f1": float("nan"), "time/step": 12.34, "not/shown": 1.0},
    "1:02:03",
)


def test_a_jobs_log_is_readable():
    log = f"starting [the] pools\n{STEP.record()}\nwarning: slow\n"
    assert readable(log) == f"starting [the] pools\n{STEP}\nwarning: slow\n"
    assert readable(log.rstrip()) == f"starting [the] pools\n{STEP}\nwarning: slow"
    assert readable("") == ""


def shown(terminal, lines):
    console = Console(width=100, record=True, force_terminal=terminal, file=io.StringIO())
    with LogView("trial", console) as view:
        for line in lines:
            view.show(line)
        panel = view.panel
    return console.export_text(), panel


def test_in_a_terminal_steps_move_the_panel_and_other_lines_stay():
    text, panel = shown(True, ["starting [the] pools", STEP.record(), "warning: slow"])
    assert "starting [the] pools\n" in text
    assert "warning: slow\n" in text
    assert (panel.bar.tasks[0].completed, panel.bar.tasks[0].total, panel.bar.tasks[0].fields["eta"]) == (
        5,
        23,
        "1:02:03",
    )
    assert "step 5/23" not in text
    assert "event" not in text


def test_elsewhere_a_log_is_printed_as_text():
    assert shown(False, ["starting [the] pools", STEP.record(), "x" * 300]) == (
        f"starting [the] pools\n{STEP}\n{'x' * 300}\n",
        None,
    )


class Broken:
    """A connection that breaks in the middle of a line: a real one would not do so when asked."""

    address, option = "http://head", ""

    def __init__(self, *connections):
        self.connections, self.client = list(connections), self

    async def tail_job_logs(self, job_id):
        for text in self.connections.pop(0):
            if text is None:
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield text

    def job(self, job_id):
        return SimpleNamespace(status=JobStatus.SUCCEEDED)


def test_a_broken_connection_is_opened_again_and_no_line_is_repeated(monkeypatch):
    monkeypatch.setattr("orchestrator.jobs.following.RECONNECT_S", 0.0)
    said = []

    async def read(cluster):
        return [line async for line in log_lines(cluster, "trial-1", said.append)]

    cluster = Broken(["one\ntwo\nthr", None], [None], ["one\n", "two\nthree\nfo", "ur\nfive"])
    assert asyncio.run(read(cluster)) == ["one", "two", "three", "four", "five"]
    assert said == ["lost the connection to http://head; reconnecting"], "once, until it is back"


def test_a_job_that_ended_where_its_log_cannot_be_read_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("orchestrator.jobs.following.RECONNECT_S", 0.01)
    monkeypatch.setattr("orchestrator.jobs.following.QUIET_S", 0.2)

    async def read(cluster):
        return [line async for line in log_lines(cluster, "trial-1", lambda message: None)]

    assert asyncio.run(read(Broken(["one\ntw", None], *[[None]] * 1000))) == ["one", "tw"]
