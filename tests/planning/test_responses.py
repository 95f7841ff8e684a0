"""`laser verify DATA --responses FILE`: verdicts, rates and what was slow."""

import json
import re

import pytest

from orchestrator.cli import main


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"id": f"p{n}", "problem": f"{n} + 1?", "answer": str(n + 1)} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def responses(tmp_path, *rows):
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_verdicts_are_counted_and_written(tmp_path, data, capsys):
    file = responses(
        tmp_path,
        {"problem_id": "p0", "responses": [r"\boxed{1}", r"\boxed{2}", r"so \boxed{1}"]},
        {"problem_id": "p2", "response": "none"},
    )
    out = tmp_path / "verdicts.jsonl"
    assert main(["verify", data, "--responses", file, "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "4 responses by math: 2 correct, 1 wrong, 1 no_answer" in printed
    assert "mean reward 0.5000 over 4 that were judged" in printed
    assert "3 checks in" in printed, "equal boxes share a check"
    assert "slowest:\n  p" in printed
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["problem_id"], row["status"], row["reward"]) for row in rows] == [
        ("p0", "correct", 1.0), ("p0", "wrong", 0.0), ("p0", "correct", 1.0), ("p2", "no_answer", 0.0),
    ]  # fmt: skip


def test_rows_without_ids_answer_the_problems_in_order(tmp_path, data, capsys):
    file = responses(tmp_path, *({"response": rf"\boxed{{{n + 1.05}}}"} for n in range(3)))
    verifier = "{name: number, tolerance: 0.06}"
    assert main(["verify", data, "--responses", file, "--verifier", verifier, "--workers", "2"]) == 0
    assert "3 responses by number: 3 correct" in capsys.readouterr().out


def test_what_is_not_judged_is_listed_and_is_no_success(tmp_path, data, capsys):
    file = responses(tmp_path, {"id": "p1", "response": "a" * 40})
    verifier = r"{name: pattern, pattern: '(a+)+$|(a|a)*b', whole: true, timeout_s: 0.5}"
    assert main(["verify", data, "--responses", file, "--verifier", verifier]) in (0, 1)
    verifier = r"{name: pattern, pattern: '(a|a)*b', timeout_s: 0.5}"
    assert main(["verify", data, "--responses", file, "--verifier", verifier]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"not judged:\n  p1: [01]\.\d", printed), "the seconds of one try, or of two"
    assert "timeout: the check against '2' took longer than 0.5 s" in printed


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"response": "x"}], "has 1 rows without a problem's id, but the data has 3 problems"),
        ([{"id": "p0", "response": "x"}, {"response": "y"}], "some rows name their problem"),
        ([{"id": "p9", "response": "x"}], "no problem of the data has the id 'p9'"),
        ([{"id": "p0", "answer": "x"}], "needs 'response', a text"),
    ],
)
def test_responses_that_do_not_fit_are_refused(tmp_path, data, capsys, rows, message):
    assert main(["verify", data, "--responses", responses(tmp_path, *rows)]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_verifier_is_refused(tmp_path, data, capsys):
    file = responses(tmp_path, {"id": "p0", "response": "x"})
    assert main(["verify", data, "--responses", file, "--verifier", "nmber"]) == 2
    assert "nearest: number" in capsys.readouterr().err
