"""The journal on disk: its format, its readers, and what a kill may do to it."""

import json
import math
import resource

import pytest

from orchestrator.errors import RunError
from orchestrator.storage import journal as journal_module
from orchestrator.storage.journal import (
    EvaluationEvent,
    Journal,
    NoteEvent,
    StartEvent,
    StatusEvent,
    StepEvent,
    SummaryEvent,
    forget,
    from_json,
    last_step,
    read_events,
    saved_run_id,
    to_json,
)


@pytest.fixture
def journal(tmp_path):
    """A run of two steps and an evaluation."""
    journal = Journal(tmp_path / "trial", clock=lambda: 1700)
    journal.start("trial")
    journal.step(1, {"train/accuracy": 0.25, "self_reward/f1": math.nan})
    journal.step(2, {"train/accuracy": 0.5})
    journal.evaluation("test", 2, {"eval/test/accuracy": 0.75}, "samples/test-000002.json", None)
    return journal


def test_the_file_is_one_object_a_line(journal):
    journal.summary()
    journal.set_status("FINISHED")
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert len(lines[0].pop("id")) == 32
    assert lines == [
        {"event": "start", "time": 1700, "run_name": "trial"},
        {"event": "step", "time": 1700, "step": 1, "values": {"train/accuracy": 0.25}},
        {"event": "step", "time": 1700, "step": 2, "values": {"train/accuracy": 0.5}},
        {
            "event": "evaluation", "time": 1700, "step": 2, "set": "test",
            "values": {"eval/test/accuracy": 0.75}, "table": "samples/test-000002.json", "figure": None,
        },
        {"event": "summary", "time": 1700},
        {"event": "status", "time": 1700, "status": "FINISHED"},
    ]  # fmt: skip


STORED = [
    '{"event": "start", "time": 1, "run_name": "trial", "id": "ab"}',
    '{"event": "step", "time": 2, "step": 1, "values": {"train/accuracy": 0.25, "time/step": 3}}',
    '{"event": "evaluation", "time": 3, "step": 1, "set": "t", "values": {}, "table": "a", "figure": null}',
    '{"event": "summary", "time": 4}',
    '{"event": "status", "time": 5, "status": "KILLED"}',
]
"""Lines as every version of this project has written them."""


def test_lines_on_disk_are_typed_events_and_back_to_the_byte():
    events = [from_json(line) for line in STORED]
    assert events == [
        StartEvent(1, "trial", "ab"),
        StepEvent(2, 1, {"train/accuracy": 0.25, "time/step": 3}),
        EvaluationEvent(3, 1, "t", {}, "a", None),
        SummaryEvent(4),
        StatusEvent(5, "KILLED"),
    ]
    assert [to_json(event) for event in events] == STORED


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"event": "step", "time": 1, "values": {}}', "step is missing"),
        ('{"event": "step", "values": {}}', "time, step is missing"),
        ('{"event": "later", "time": 1}', "it is not an event"),
        ("[]", "it is not an event"),
        ("{", "Expecting"),
    ],
)
def test_a_line_that_is_no_event_is_refused(line, reason):
    with pytest.raises(ValueError, match=reason):
        from_json(line)


def test_unknown_keys_of_an_event_are_ignored():
    assert from_json('{"event": "summary", "time": 4, "added": 1}') == SummaryEvent(4)


def test_a_complete_last_line_of_a_later_version_is_refused_and_kept(journal):
    whole = journal.path.read_bytes() + b'{"event": "later", "time": 1}\n'
    journal.path.write_bytes(whole)
    with pytest.raises(RunError, match="line 5 is no event"):
        Journal(journal.folder)
    assert journal.path.read_bytes() == whole


def test_the_opening_event_is_the_first_one(journal):
    assert journal.opening.run_name == "trial"
    _, *rest = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join(rest))
    with pytest.raises(RunError, match="does not begin with a start event"):
        _ = Journal(journal.folder).opening


def test_what_is_not_finite_is_kept_as_it_is_in_plain_json(journal):
    overflowed = {"policy/grad_norm": math.inf, "loss/total": -math.inf, "loss/policy": math.nan}
    journal.step(3, overflowed | {"train/accuracy": math.nan})
    *_, last = journal.path.read_text().splitlines()
    values = json.loads(last, parse_constant=pytest.fail)["values"]
    assert values == {"policy/grad_norm": "inf", "loss/total": "-inf", "loss/policy": "nan"}
    read = read_events(journal.folder)[-1].values
    assert (read["policy/grad_norm"], read["loss/total"]) == (math.inf, -math.inf)
    assert math.isnan(read["loss/policy"])


@pytest.mark.parametrize("values", ['"a"', '{"loss/total": "much"}', '{"loss/total": [1]}', "null", "[1]"])
def test_values_that_are_no_numbers_are_no_event(values):
    with pytest.raises(ValueError, match=r"."):
        from_json(f'{{"event": "step", "time": 1, "step": 2, "values": {values}}}')


def test_a_note_reads_back(journal):
    journal.note(2, "step 2: skipped")
    note = read_events(journal.folder)[-1]
    assert isinstance(note, NoteEvent)
    assert (note.step, note.text) == (2, "step 2: skipped")


def test_a_reopened_journal_knows_its_content(journal):
    journal.set_status("FAILED")
    again = Journal(journal.folder)
    assert (len(again), again.last_step, again.evaluations, again.status) == (5, 2, {("test", 2)}, "FAILED")
    assert [type(event) for event in again.events(2)] == [StepEvent, EvaluationEvent, StatusEvent]
    assert list(again.events(5)) == []
    empty = Journal(journal.folder / "other")
    assert (len(empty), empty.last_step, empty.evaluations, empty.status, empty.sent) == (
        0,
        -1,
        set(),
        None,
        0,
    )


@pytest.mark.parametrize(
    "tail",
    [
        b'{"event": "step", "time": 17',
        b'{"event": "summary", "time": 1}',
        b"\0\0\0\0\n",
        b'{"event": "step\xc3',
    ],
)
def test_an_unfinished_last_line_is_dropped(journal, tail):
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + tail)
    assert len(read_events(journal.folder)) == 4, "a reader leaves the last line out"
    assert journal.path.read_bytes() == whole + tail, "and does not change the file"
    again = Journal(journal.folder)
    assert journal.path.read_bytes() == whole
    again.step(3, {"train/accuracy": 1.0})
    assert [event.step for event in again.events(3)] == [2, 3]
    assert [type(event) for event in read_events(journal.folder)] == [
        StartEvent,
        StepEvent,
        StepEvent,
        EvaluationEvent,
        StepEvent,
    ]


def test_a_broken_line_in_the_middle_is_reported_with_its_number(journal):
    first, second, *rest = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text(first + second[:10] + "\n" + "".join(rest))
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 2 is no event"):
        Journal(journal.folder)
    with pytest.raises(RunError, match="line 2"):
        read_events(journal.folder)


def test_a_full_disk_leaves_no_half_line(journal, monkeypatch):
    whole = journal.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        journal.step(3, {"train/accuracy": 1.0})
    assert journal.path.read_bytes() == whole
    assert (len(journal), journal.last_step) == (4, 2)
    monkeypatch.undo()
    journal.step(3, {"train/accuracy": 1.0})
    assert [event.step for event in Journal(journal.folder).events(4)] == [3]


def test_the_cursor_outlives_the_process_and_a_torn_one_is_zero(journal):
    assert journal.sent == 0
    journal.mark_sent(3)
    assert Journal(journal.folder).sent == 3
    (journal.folder / ".mlflow-sent").write_text("")
    assert Journal(journal.folder).sent == 0
    (journal.folder / ".mlflow-sent").write_text("17\n")
    assert Journal(journal.folder).sent == 4, "at most the number of events"


def test_a_folder_can_be_forgotten(journal):
    journal.mark_sent(3)
    (journal.folder / "mlflow_run_id").write_text("abc")
    assert saved_run_id(journal.folder) == "abc"
    forget(journal.folder)
    assert saved_run_id(journal.folder) is None
    assert read_events(journal.folder) == []
    assert Journal(journal.folder).sent == 0
    forget(journal.folder)


def test_the_last_step_is_read_from_the_end_of_a_long_journal(tmp_path):
    assert last_step(tmp_path) == 0
    journal = Journal(tmp_path)
    journal.start("run")
    assert last_step(tmp_path) == 0
    for step in range(1, 400):
        journal.step(step, {f"metric/{number}": 0.5 for number in range(20)})
    assert (tmp_path / "metrics.jsonl").stat().st_size > 2 * 2**16
    journal.evaluation("test", 399, {"eval/test/accuracy": 0.5}, None, None)
    journal.set_status("FINISHED")
    assert last_step(tmp_path) == 399


def test_a_file_without_room_ends_the_run_with_its_name_and_stays_readable(tmp_path):
    """A limit on the size of files ends a write in the middle of a line, as a full disk does."""
    journal = Journal(tmp_path)
    journal.start("full")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 10, hard))
    try:
        with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written .*the same command"):
            journal.step(1, {"loss/total": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.step(1, {"loss/total": 0.5})
    assert [event.step for event in read_events(tmp_path) if isinstance(event, StepEvent)] == [1]
