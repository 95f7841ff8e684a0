"""What the fields of a data file may hold: refusals name file, line, field and cause; honest texts stay."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data.problems import load_problems
from orchestrator.data.texts import answer_text, check_text, field_text
from orchestrator.errors import DataError


def load(path, *lines):
    """The problems of a file of these lines, which are JSON already."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return load_problems(str(path), "problem", "answer")


def row(problem='"1+1="', answer='"2"', more=""):
    return f'{{"problem": {problem}, "answer": {answer}{more}}}'


@pytest.mark.parametrize(
    "written",
    [
        *("0", "-0", "5.0", "1e22", "1E5", "0.30000000000000004", "1e400", "1e-400", "0.1000", "-2.50e-07"),
        "7" * 400,
        "-" + "8" * 5000,
        "0." + "3" * 400,
    ],
)
def test_a_number_is_read_as_it_is_written(written, tmp_path):
    (problem,) = load(tmp_path / "a.jsonl", row(answer=written))
    assert problem.reference == written
    (problem,) = load(tmp_path / "a.json", f"[{row(problem=written)}]")
    assert problem.text == written


def test_a_list_of_answers_is_joined(tmp_path):
    lines = row(answer='["1 ", "-1"]'), row(answer="[1, 2.50, -0]"), row(answer='["x", 2]')
    assert [problem.reference for problem in load(tmp_path / "a.jsonl", *lines)] == [
        "1, -1",
        "1, 2.50, -0",
        "x, 2",
    ]


def test_ids_and_kinds_may_be_numbers(tmp_path):
    line = row(more=', "id": 12345678901234567890123, "kind": 1.50')
    (problem,) = load(tmp_path / "a.jsonl", line)
    assert (problem.id, problem.kind) == ("12345678901234567890123", "1.50")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("NaN", "is nan, which equals no answer"),
        ("Infinity", "is inf, which"),
        ("-Infinity", "is -inf, which"),
        ("1e99999999", "is '1e99999999', a number that no check compares in time"),
        ('"1e-1000000"', "is '1e-1000000', a number that no check compares in time"),
        ("true", "is True, neither text nor a number"),
        ("null", "is None, neither"),
        ("[]", r"is \[\], neither"),
        ("[[1, 2], [3]]", r"is \[\['1', '2'\], \['3'\]\], neither"),
        ('[{"a": 1}]', ".*neither text nor a number"),
        ('["1", ""]', "is empty"),
        ("[1, null]", "is None, neither"),
        ("[1, NaN]", "is nan, which"),
        ('{"value": 5, "more": {"deep": [1, {"x": 2}]}}', "is {.*'value': '5'.*}, neither"),
        (f'["{"9" * 5000}", [{"8" * 5000}]]', r"is \['999.{100,}\]\], neither"),
    ],
)
def test_what_is_no_answer_is_refused_with_line_and_field(answer, reason, tmp_path):
    with pytest.raises(DataError, match=rf"a\.jsonl, line 2: 'answer' {reason}") as caught:
        load(tmp_path / "a.jsonl", row(), row(answer=answer))
    assert len(str(caught.value)) < 500


def test_numbers_of_parquet(tmp_path):
    values = {"decimal": Decimal("5.00"), "large": 2**63 - 1, "float": 0.1 + 0.2}
    pq.write_table(pa.Table.from_pylist([{"problem": "1", **values}]), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    answers = {name: load_problems(path, "problem", name)[0].reference for name in values}
    assert answers == {"decimal": "5.00", "large": "9223372036854775807", "float": "0.30000000000000004"}
    pq.write_table(pa.table({"problem": ["1"], "answer": [float("nan")]}), tmp_path / "nan.parquet")
    with pytest.raises(DataError, match="line 1: 'answer' is nan"):
        load_problems(str(tmp_path / "nan.parquet"), "problem", "answer")


def test_parquet_that_is_no_text_is_named(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"problem": broken, "answer": ["1"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as parquet .*utf-8"):
        load_problems(str(tmp_path / "a.parquet"), "problem", "answer")


@pytest.mark.parametrize(
    ("latex", "macro"),
    [
        (r"\frac{1}{2}", "frac"),
        (r"\beta", "beta"),
        (r"\text{yes}", "text"),
        (r"\textbf{3}", "textbf"),
        (r"5\times 10^3", "times"),
        (r"\theta", "theta"),
        (r"\tau", "tau"),
        (r"\tan x", "tan"),
        (r"\triangle ABC", "triangle"),
        (r"\tfrac12", "tfrac"),
        (r"\nabla f", "nabla"),
        (r"x\neq 0", "neq"),
        (r"\neq", "neq"),
        (r"\nu", "nu"),
        (r"E=h\nu", "nu"),
        (r"x \ne 0", "ne"),
        (r"a \nmid b", "nmid"),
        (r"x\notin A", "notin"),
        (r"\rho", "rho"),
        (r"(1\right)", "right"),
        (r"x\rightarrow y", "rightarrow"),
    ],
)
def test_a_macro_behind_a_single_backslash_is_refused_in_an_answer(latex, macro, tmp_path):
    with pytest.raises(DataError, match=r"line 2: 'answer' holds .*single backslash") as caught:
        load(tmp_path / "a.jsonl", row(), row(answer=f'"{latex}"'))
    assert str(caught.value).endswith(f'write "\\\\{macro}"')
    (problem,) = load(tmp_path / "b.jsonl", row(answer=json.dumps(latex)))
    assert problem.reference == latex


@pytest.mark.parametrize(
    "problem",
    [
        "Find \\frac{1}{2}.",
        "Let \\beta be",
        "Let $5 \\times 3$",
        "Is \\text{a} so",
        "If \\theta=1",
        "Let $x \\neq 0$.",
        "Let \\\\(x \\neq 0\\\\).",
        "Take $\\nabla f$",
        "a $\\rho$ b",
        "$2 \\tau$",
        "(1\\right)",
    ],
)
def test_a_macro_behind_a_single_backslash_is_refused_in_a_problem(problem, tmp_path):
    with pytest.raises(DataError, match=r"line 1: 'problem' holds .*single backslash"):
        load(tmp_path / "a.jsonl", row(problem=f'"{problem}"'))


def test_a_backslash_that_json_does_not_know_has_its_cure(tmp_path):
    with pytest.raises(DataError, match=r"line 1: is not JSON \(Invalid .*write a backslash as \\\\ in JSON"):
        load(tmp_path / "a.jsonl", r'{"problem": "\alpha", "answer": "1"}')


@pytest.mark.parametrize(
    ("character", "name"),
    [
        ("\x00", "a NUL character"),
        ("\x07", "a bell character"),
        ("\x0b", "a vertical tab"),
        ("\x1b", "an escape character"),
        ("\x1f", "a control character"),
        ("\x7f", "a control character"),
        ("\x92", "a control character .*Windows-1252"),
    ],
)
@pytest.mark.parametrize("field", ["problem", "answer"])
def test_other_control_characters_are_refused(character, name, field, tmp_path):
    with pytest.raises(DataError, match=f"line 1: '{field}' holds {name}"):
        load(tmp_path / "a.jsonl", row(**{field: json.dumps(f"it{character} 5")}))


def test_what_a_program_wrote_with_one_backslash_is_explained():
    for text, macro in (("\x07lpha", "alpha"), ("\x0bec v", "vec")):
        with pytest.raises(DataError, match=rf'write "\\\\{macro}"'):
            check_text(text, "a")


HONEST = [
    "def f(x):\n\tif x:\n\t\treturn x\n\telse:\n\t\tnext = 1\n",
    "a\tb\tau\tto\n1\t2\t3\t4",
    "int main() {\r\n\tint t = 0;\r\n\ttotal += t;\r\n}",
    "x = 1\ne = 2\nu = 3\ni = 4",
    "1. one\nu. two\neq. (3)\nmid",
    "It costs $5\neq. 3 says so, or $6.",
    "$$\nu = 5\n$$ and \\[\ne = 2\n\\]",
    "\\begin{align}\n\ta u &= 1 \\\\\n\tau &=\t2\n\\end{align}",
    "old line ends\rright here\rhow many?",
    "one\u2028two\u2029three\x85four",
    "\u202bשלום\u202c 5\u200f",
    "a\u200db 👩\u200d👩 می\u200cخواهم soft\u00adhyphen \ufeffmark",
    "private \ue000 and nonchar \ufdd0 \uffff",
    "  \n\t spaces around \t\n ",
    "two\n\n\nparagraphs",
]


@pytest.mark.parametrize("text", HONEST)
def test_honest_text_is_kept(text, tmp_path):
    (problem,) = load(tmp_path / "a.jsonl", row(problem=json.dumps(text)))
    assert problem.text == text.strip()


@pytest.mark.parametrize(
    "answer",
    [
        "x = 1\ne = 2\nu = 3",
        "def f():\n\treturn 5",
        "She sold 5 clips.\nThen 6 more.\nIn total 11.\n#### 11",
        "1\r\n2",
        "\n42\n",
        "\n\\frac{1}{2}",
        "a\tb",
        "5\u00a0km",
        "unknown\nnever",
        "x = 1 \ne = 2",
        "yes \nor no",
    ],
)
def test_honest_answers_are_kept(answer, tmp_path):
    (problem,) = load(tmp_path / "a.jsonl", row(answer=json.dumps(answer)))
    assert problem.reference == answer.strip()


@pytest.mark.parametrize("character", ["\u200b", "\u200e", "\u202e", "\u2060", "\ufeff", "\u00ad"])
def test_an_answer_with_an_invisible_character_is_refused(character, tmp_path):
    with pytest.raises(DataError, match=rf"'answer' holds the invisible character U\+{ord(character):04X}"):
        load(tmp_path / "a.jsonl", row(answer=json.dumps(f"5{character}")))


@pytest.mark.parametrize("field", ["problem", "answer", "id", "kind"])
def test_a_lone_surrogate_is_refused_in_every_field(field, tmp_path):
    values = {"problem": '"1"', "answer": '"1"', field: r'"a \ud83d b"'}
    line = "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"
    with pytest.raises(DataError, match=rf"line 2: '{field}' holds the lone surrogate U\+D83D"):
        load(tmp_path / "a.jsonl", row(), line)
    (problem,) = load(tmp_path / "b.jsonl", line.replace(r"\ud83d", r"\ud83d\ude00"))
    assert "😀" in (problem.text + problem.reference + problem.id + str(problem.kind))


def test_a_key_that_is_there_twice_is_refused_where_it_is_read(tmp_path):
    with pytest.raises(DataError, match="line 1: 'answer' is there more than once"):
        load(tmp_path / "a.jsonl", row(more=', "answer": "3"'))
    assert load(tmp_path / "b.jsonl", row(more=', "note": 1, "note": {"a": 1, "a": 2}'))


def test_all_lines_that_are_refused_are_counted(tmp_path):
    lines = [row(), row(answer="null"), *[row(answer='"\\frac12"')] * 12, row()]
    with pytest.raises(
        DataError, match=r"line 2: 'answer' is None.*\. 12 more lines are refused: 3, 4, .*, 12, \.\.\.$"
    ):
        load(tmp_path / "a.jsonl", *lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (row().encode("utf-16"), r"a\.jsonl, line 1: is not UTF-8 text \(at byte 0\)"),
        (f"{row()}\n{row('1é')}".encode("latin-1"), r"a\.jsonl, line 2: is not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"problem": ' + b"[" * 100_000, "line 1: is nested too deeply"),
        (b'{"problem": "1", "answer": 1', "line 1: is not JSON"),
        (b"\0\0\0", "line 1: is not JSON"),
        (b"\n \n", "holds no problem"),
        (b"null", "line 1: is None, not an object"),
        (b'"' + b"x" * 9999 + b'"', r"line 1: is 'xxx.{60,90}', not an object"),
    ],
)
def test_files_that_are_no_data_are_refused_with_their_line(content, message, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_problems(str(tmp_path / "a.jsonl"), "problem", "answer")


def test_a_mark_at_the_files_start_and_crlf_are_accepted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{row()}\r\n\r\n{row()}\r\n".encode())
    assert [problem.line for problem in load_problems(str(tmp_path / "a.jsonl"), "problem", "answer")] == [
        1,
        3,
    ]


def test_a_folder_or_a_path_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    for path in (tmp_path / "a.jsonl", f"{'x' * 300}.jsonl", "a\0b.jsonl"):
        with pytest.raises(DataError):
            load_problems(str(path), "problem", "answer")


def test_messages_of_wide_rows_are_short():
    with pytest.raises(DataError, match="no field 'answer'; its fields are 'f0'") as caught:
        field_text({f"f{number}": "x" * 500 for number in range(5000)}, "answer", "data.answer_field", "a")
    assert len(str(caught.value)) < 500
    with pytest.raises(DataError) as caught:
        answer_text({"answer": "\ud800" * 5000}, "answer", "data.answer_field", "a")
    assert len(str(caught.value)) < 500
