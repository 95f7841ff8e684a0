"""A run's trace: whole JSON at every moment, rows without overlap, and a file that is continued."""

import itertools
import json
import random

from orchestrator.messages.spans import Span, SpanList
from orchestrator.tracking.trace import Trace


def spans(path):
    """The spans of a trace file by row, each as (start, end, name)."""
    rows = {}
    for event in json.loads(path.read_text()):
        if event["ph"] == "X":
            row = rows.setdefault((event["pid"], event["tid"]), [])
            row.append((event["ts"], event["ts"] + event["dur"], event["name"]))
    return rows


def names(path):
    """The workers' names by process."""
    events = json.loads(path.read_text())
    return {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}


def test_an_empty_trace_is_valid(tmp_path):
    Trace(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text()) == []


def test_the_file_is_whole_after_each_span(tmp_path):
    trace = Trace(tmp_path / "trace.json")
    for number in range(3):
        trace.add("learning", 1, Span("forward", number, number + 0.5, {"tokens": number}))
        [row] = spans(tmp_path / "trace.json").values()
        assert len(row) == number + 1
    assert row[1] == (1_000_000, 1_500_000, "forward")
    assert list(names(tmp_path / "trace.json").values()) == ["rank 1"]
    assert json.loads((tmp_path / "trace.json").read_text())[-1]["args"] == {"tokens": 2}


def test_a_resumed_run_continues_its_trace(tmp_path):
    path = tmp_path / "trace.json"
    Trace(path).add("driver", 0, Span("step", 1.0, 2.0))
    Trace(path).add("driver", 0, Span("step", 3.0, 4.0))
    [row] = spans(path).values()
    assert row == [(1_000_000, 2_000_000, "step"), (3_000_000, 4_000_000, "step")]


def test_a_write_that_a_kill_tore_is_cut_off(tmp_path):
    path = tmp_path / "trace.json"
    trace = Trace(path)
    trace.add("driver", 0, Span("step", 1.0, 2.0))
    trace.add("driver", 0, Span("step", 3.0, 4.0))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b'"dur"')])
    Trace(path).add("driver", 0, Span("step", 5.0, 6.0))
    [row] = spans(path).values()
    assert [start for start, _, _ in row] == [1_000_000, 5_000_000]


def test_concurrent_groups_get_rows_of_their_own(tmp_path):
    """Spans come as they end; no two of a row overlap, and there are no more rows than groups at a time."""
    path, draw = tmp_path / "trace.json", random.Random(0)
    at_a_time, made = 4, []
    free_at = [0.0] * at_a_time
    for number in range(200):
        slot = min(range(at_a_time), key=lambda index: free_at[index])
        started = free_at[slot]
        free_at[slot] = started + draw.expovariate(1.0) + 0.001
        made.append(Span(f"group {number}", started, free_at[slot]))
    trace = Trace(path)
    for span in sorted(made, key=lambda span: span.ended):
        trace.add_concurrent("rollout", 0, span)
    rows = spans(path)
    assert len(rows) == at_a_time
    assert sorted(name for row in rows.values() for *_, name in row) == sorted(span.name for span in made)
    for row in rows.values():
        for (_, ended, _), (started, _, _) in itertools.pairwise(sorted(row)):
            assert ended <= started


def test_workers_have_names_and_processes_of_their_own(tmp_path):
    trace = Trace(tmp_path / "trace.json")
    for pool, worker in (("driver", 0), ("rollout", 0), ("rollout", 1), ("verification", 0), ("learning", 0)):
        trace.add(pool, worker, Span("work", 0.0, 1.0))
    assert list(names(tmp_path / "trace.json").values()) == [
        "driver",
        "engine 0",
        "engine 1",
        "verifier 0",
        "rank 0",
    ]


def test_spans_are_measured_where_they_happen():
    found = SpanList()
    with found("outer", step=3), found("inner"):
        pass
    inner, outer = found
    assert (inner.name, outer.name, outer.arguments) == ("inner", "outer", {"step": 3})
    assert outer.started <= inner.started <= inner.ended <= outer.ended
    assert outer.seconds == outer.ended - outer.started
