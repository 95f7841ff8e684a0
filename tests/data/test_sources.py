"""Problems of a source: from every kind of file, and from rows of every shape."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.config.sources import Source
from orchestrator.config.verifiers import verifier_text
from orchestrator.data.problems import ProblemSource
from orchestrator.data.rows import open_rows
from orchestrator.errors import ConfigError, DataError

ROWS = [{"problem": f"What is {n} + 1?", "answer": str(n + 1), "kind": "sum"} for n in range(5)]


def source_of(path, **settings):
    return ProblemSource(Source(str(path), "mine", **settings))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(path, row, **settings):
    """The problem of a file with this row."""
    (problem,) = source_of(write_rows(path / "a.jsonl", [row]), **settings)
    return problem


def content_of(kind, rows):
    """The bytes of a file of this kind with these rows."""
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows, indent=2).encode()
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def packed(content, suffix):
    if suffix == ".gz":
        half = len(content) // 2  # two members, as `cat a.gz b.gz` makes them
        return gzip.compress(content[:half]) + gzip.compress(content[half:])
    return pa.compress(content, "zstd", asbytes=True) if suffix == ".zst" else content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_holds_the_same_problems(kind, suffix, tmp_path):
    path = tmp_path / f"data.{kind}{suffix}"
    path.write_bytes(packed(content_of(kind, ROWS), suffix))
    source = source_of(path)
    assert [(problem.text, problem.reference, problem.kind) for problem in source] == [
        (row["problem"], row["answer"], "sum") for row in ROWS
    ]
    assert [source[n].text for n in (4, 0, -1)] == [ROWS[n]["problem"] for n in (4, 0, -1)]
    plain = source_of(write_rows(tmp_path / "plain.jsonl", ROWS))
    assert plain.fingerprint.change(source.fingerprint) is None, "neither place nor format counts"


def test_folders_and_patterns_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "more").mkdir()
    write_rows(tmp_path / "more" / "b.jsonl", ROWS[3:])
    write_rows(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(content_of("csv", ROWS[1:3])))
    source = source_of(tmp_path)
    assert [problem.text for problem in source] == [row["problem"] for row in ROWS]
    assert source[4].where == f"{tmp_path}/more/b.jsonl, line 2: 'problem'"
    assert len(source_of(tmp_path / "*.jsonl")) == 1
    assert len(source_of(tmp_path / "**" / "*.jsonl")) == 3
    with pytest.raises(DataError, match="no file matches"):
        source_of(tmp_path / "*.parquet")


def test_files_of_a_folder_that_are_named_after_splits_are_chosen_by_split(tmp_path):
    for split in ("train", "test", "validation"):
        write_rows(tmp_path / f"{split}-00000-of-00001.jsonl", [{"problem": split, "answer": "1"}])
    found = {split: source_of(tmp_path, split=split)[0].text for split in ("train", "test", "dev")}
    assert found == {"train": "train", "test": "test", "dev": "validation"}
    with pytest.raises(DataError, match=r"has no split 'extra'; .*test, train, validation"):
        source_of(tmp_path, split="extra")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"problem,answer\n1+1,2,3\n", r"line 2: has 3 fields, but the header names 2"),
        (b'problem,answer\n"1\n+1",2\n\nx,\xff\n', r"is not CSV in UTF-8"),
        (b"problem,answer\n1+1,\n", r"line 2: 'answer' is empty"),
        (b'problem,answer\n"1\n+1",2\n2+2,\n', r"line 4: 'answer' is empty"),
        (b"", "holds no problem"),
    ],
)
def test_csv_that_cannot_be_used_is_named(content, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        source_of(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "text", ["[1 2]", '[{"a": 1},]', '[{"a": 1}', '[{"a": 1}] x', "[,1]", '["\n"]', "[" * 10_000, "[\x00"]
)
def test_a_json_array_that_is_none_is_named(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json: is (not JSON|nested)"):
        open_rows(str(tmp_path / "a.json"))


def test_a_compressed_file_that_is_damaged_is_named(tmp_path):
    whole = gzip.compress(content_of("jsonl", ROWS))
    for content in (whole[: len(whole) // 2], b"no gzip"):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.jsonl\.gz: "):
            source_of(tmp_path / "a.jsonl.gz")


def test_nested_fields_are_reached_by_dots_and_others_travel_along(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "1+1?"}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "choices": [{"text": "x"}, {"text": "2"}],
        "level": 0.50,
        "a.b": "dotted",
        "extra": {"n": 10**20, "bad": None, "list": [1, True]},
    }
    problem = only(tmp_path, row, problem_field="prompt", answer_field="reward_model.ground_truth")
    assert (problem.text, problem.reference) == ("1+1?", "2")
    assert problem.fields == {key: value for key, value in row.items() if key != "prompt"}
    assert json.loads(json.dumps(problem.fields)) == problem.fields
    assert only(tmp_path, row, problem_field="choices.1.text", answer_field="a.b").reference == "dotted"
    with pytest.raises(DataError, match=r"no field 'reward_model.truth'; .*set data.answer_field"):
        only(tmp_path, row, problem_field="prompt", answer_field="reward_model.truth")


def test_the_last_match_of_a_pattern_is_the_reference(tmp_path):
    row = {"problem": "?", "answer": "First #### 3\nthen #### 1,234 \n"}
    assert only(tmp_path, row, answer_pattern=r"####\s*(.+)").reference == "1,234"
    with pytest.raises(
        DataError, match=r"line 1: answer_pattern 'ANSWER: \(\.\*\)' finds nothing in 'answer'"
    ):
        only(tmp_path, row, answer_pattern="ANSWER: (.*)")


def test_a_conversation_keeps_its_messages(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "2+2?"}]},
    ]
    problem = only(tmp_path, {"messages": turns, "answer": 4}, problem_field="messages")
    assert problem.messages == (*turns[:3], {"role": "user", "content": "and 2+2?"})
    assert problem.text == "and 2+2?"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
            "last message is not the",
        ),
        ([{"role": "tool", "content": "1"}], r"\[0\]: its role is 'tool'"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"\[0\]: its content is .* no text"),
        ([{"role": "user", "content": "\x00"}], r"\[0\] holds a NUL"),
        ([{"role": "user", "content": " "}], "is empty"),
        ([{"from": "human"}], "neither text nor a list of messages"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, message, tmp_path):
    with pytest.raises(DataError, match=rf"line 1: 'm'.*{message}"):
        only(tmp_path, {"m": messages, "answer": 1}, problem_field="m")


OPTIONS = (
    '{% set options = shuffled([row["Correct Answer"], row["Wrong 1"], row["Wrong 2"]]) %}'
    "{{ Question }}{% for option in options %}\n{{ letters[loop.index0] }}. {{ option }}{% endfor %}"
    '{% set answer = letters[options.index(row["Correct Answer"])] %}'
)


def test_a_template_makes_problem_and_answer_of_several_fields(tmp_path):
    rows = [
        {"Question": f"q{n}", "Correct Answer": f"right {n}", "Wrong 1": "w1", "Wrong 2": "w2"}
        for n in range(20)
    ]
    path = write_rows(tmp_path / "gpqa.jsonl", rows)
    problems = list(source_of(path, problem_template=OPTIONS))
    for number, problem in enumerate(problems):
        lines = problem.text.splitlines()
        assert lines[0] == f"q{number}"
        assert f"{problem.reference}. right {number}" in lines
    assert {problem.reference for problem in problems} == {"A", "B", "C"}
    again, other = (list(source_of(path, problem_template=OPTIONS, seed=seed)) for seed in (0, 1))
    assert [problem.text for problem in again] == [problem.text for problem in problems]
    assert [problem.text for problem in other] != [problem.text for problem in problems]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ nothing }}", r"line 1: problem_template fails on it \(UndefinedError.*'question'"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% for n in range(10**9) %}{% endfor %}", "OverflowError"),
        (" ", "is empty"),
    ],
)
def test_a_template_that_fails_on_a_row_is_named(template, message, tmp_path):
    with pytest.raises(DataError, match=message):
        only(tmp_path, {"question": "1", "answer": "2"}, problem_template=template)


def test_a_text_that_is_no_template_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train \(mine\): problem_template: is no Jinja template"):
        only(tmp_path, {"answer": "2"}, problem_template="{% if %}")


def doubled(row):
    """A function of a user's own."""
    return {"problem": f"{row['n']} * 2?", "answer": str(2 * int(row["n"])), "level": "easy"}


def test_a_function_makes_the_row(tmp_path):
    problem = only(tmp_path, {"n": 21}, rows="tests.data.test_sources:doubled")
    assert (problem.text, problem.reference, problem.fields) == ("21 * 2?", "42", {"level": "easy"})
    for rows, error, message in (
        ("tests.data.test_sources:gone", ConfigError, "cannot be imported"),
        ("tests.data.test_sources:OPTIONS", ConfigError, "no function"),
        ("tests.data.test_sources:doubled", DataError, r"line 1: .*:doubled fails on it \(KeyError: 'n'\)"),
        ("builtins:len", DataError, "returned int, not a mapping"),
    ):
        with pytest.raises(error, match=message):
            only(tmp_path, {"m": 21}, rows=rows)


def test_a_rows_verifier_wins_and_may_need_no_answer(tmp_path):
    own = verifier_text({"name": "number", "tolerance": 0.5})
    named = {"style": {"name": "pattern", "pattern": "^yes"}}
    row = {"problem": "1", "verifier": "style"}
    problem = only(tmp_path, row, verifier=own, named_verifiers=named)
    assert (problem.verifier, problem.reference) == (verifier_text(named["style"]), None)
    assert only(tmp_path, {"problem": "1", "answer": 1}, verifier=own).verifier == own
    with pytest.raises(DataError, match=r"no field 'answer'"):
        only(tmp_path, {"problem": "1", "verifier": "math"}, verifier=own)
    with pytest.raises(DataError, match=r"line 1: 'verifier'.*judge"):
        only(tmp_path, {"problem": "1", "verifier": {"name": "judge", "base_url": "http://x", "model": "m"}})
    assert only(tmp_path, {"problem": "1"}, needs_answer=False).reference is None


def test_refused_rows_are_counted_and_ids_are_unique(tmp_path):
    rows = [{"problem": "1", "answer": 1, "id": 7}] * 3
    path = write_rows(tmp_path / "a.jsonl", rows)
    source = source_of(path)
    assert [problem.id for problem in source] == ["7", "7-2", "7-3"]
    assert [source[n].id for n in (2, 1)] == ["7-3", "7-2"]
    assert len(source_of(path, max_problems=2)) == 2
    with pytest.raises(DataError, match=r"line 1: no field 'q'.* 2 more lines are refused: 2, 3"):
        source_of(path, problem_field="q")


def test_a_change_of_other_fields_is_seen(tmp_path):
    rows = [{"problem": "1", "answer": 1, "tests": n} for n in range(3)]
    before = source_of(write_rows(tmp_path / "a.jsonl", rows)).fingerprint
    rows[1]["tests"] = 9
    now = source_of(write_rows(tmp_path / "a.jsonl", rows)).fingerprint
    assert before.change(now) == "problems and answers are the same, but other fields differ"
