"""`laser verify`: references that the verifier cannot read, before a run is paid for."""

import json

import pytest

from orchestrator.cli import main


def write(path, answers, field="answer"):
    path.write_text(
        "".join(json.dumps({"problem": f"p{n}", field: one}) + "\n" for n, one in enumerate(answers))
    )
    return str(path)


def test_references_that_are_read(tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", ["42", r"\frac{1}{2}", "x=5", "(1,2)", r"\text{east}"])
    assert main(["verify", data]) == 0
    assert capsys.readouterr().out == f"{data}: all 5 references are read\n"


def test_references_that_are_not_read_are_named_with_line_and_reason(tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", ["42", r"\frac{1}{", "7", r"3 \mho"], field="final")
    assert main(["verify", data, "--answer-field", "final"]) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith(rf"{data}, line 2: '\\frac{{1}}{{': cannot read")
    assert second == rf"{data}, line 4: '3 \\mho': cannot read 'mho' after an expression"
    assert last.startswith(f"{data}: 2 of 4 references are not wholly read")


@pytest.mark.parametrize(
    ("name", "message"), [("none.jsonl", "no such file"), ("data.jsonl", "no field 'reply'")]
)
def test_data_that_cannot_be_read_is_refused(tmp_path, capsys, name, message):
    write(tmp_path / "data.jsonl", ["42"])
    assert main(["verify", str(tmp_path / name), "--answer-field", "reply"]) == 2
    assert message in capsys.readouterr().err
