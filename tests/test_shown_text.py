"""Texts of others: what a terminal, a log and a traceback show of control sequences and of secrets."""

import io
import subprocess
import sys

import pytest
from rich.markup import escape
from rich.table import Table

from orchestrator.shown_text import printable, safe_to_show, without_secrets
from orchestrator.terminal import SafeConsole, say_line

TITLE = "\x1b]0;owned\x07"
HOSTILE = {
    TITLE: r"\x1b]0;owned\x07",
    "\x1b[2Jgone": r"\x1b[2Jgone",
    "\x9b2Jgone": r"\x9b2Jgone",
    "\x1bP$q\x1b\\": r"\x1bP$q\x1b" + "\\",
    "right\r wrong": r"right\r wrong",
    "a\x08b\x00": r"a\x08b\x00",
    "a\u202eb": r"a\u202eb",
    "half \ud83d": r"half \ud83d",
    "\x1b[31mred\x1b[0m": "red",
    "two\nlines\tü ☃ 𝔸 <script>": "two\nlines\tü ☃ 𝔸 <script>",
}


@pytest.mark.parametrize(("text", "expected"), HOSTILE.items())
def test_control_characters_are_spelt_out(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_steers_the_terminal(text, is_terminal):
    plain, hostile = ("ordinary", text)
    found = []
    for cell in (plain, hostile):
        file = io.StringIO()
        console = SafeConsole(file=file, width=60, force_terminal=is_terminal, highlight=False)
        table = Table("answer", title=escape(cell))
        table.add_row(escape(cell))
        console.print(table)
        console.print(cell, markup=False, soft_wrap=True)
        found.append(file.getvalue())
    controls = [
        {character for character in output if ord(character) < 32 or 0x7F <= ord(character) < 0xA0}
        for output in found
    ]
    assert controls[1] <= controls[0] | {"\n"}, "only what rich itself writes"
    assert "\x1b]" not in found[1]
    assert "\x1b[2J" not in found[1]


def test_a_table_keeps_its_width():
    file = io.StringIO()
    table = Table("answer", "verdict", width=40)
    table.add_row(TITLE * 3, "wrong")
    SafeConsole(file=file, width=40, force_terminal=False).print(table)
    assert {len(line) for line in file.getvalue().splitlines()} == {40}


def test_a_line_is_printed_safely(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    say_line(f"{TITLE}hf_planted")
    say_line("half \ud83d", stderr=True)
    captured = capsys.readouterr()
    assert captured.out == "\\x1b]0;owned\\x07***\n"
    assert captured.err == "half \\ud83d\n"


@pytest.mark.parametrize(
    ("variable", "value", "secret"),
    [
        ("LASER_API_KEY", "sk-planted", "sk-planted"),
        ("my_api_key", "planted-lower", "planted-lower"),
        ("MLFLOW_TRACKING_URI", "postgresql://me:pla/nt@ed@host/db", "pla/nt@ed"),
        ("HTTPS_PROXY", "http://me:planted@proxy:3128", "planted"),
    ],
)
def test_secrets_of_the_environment_are_hidden(monkeypatch, variable, value, secret):
    monkeypatch.setenv(variable, value)
    assert secret not in without_secrets(f"refused: {secret} and {value}")


def test_the_longer_of_two_secrets_is_hidden_whole(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "planted")
    monkeypatch.setenv("B_TOKEN", "planted-longer")
    assert without_secrets("planted-longer") == "***"


def test_short_values_and_ordinary_words_stay(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    assert safe_to_show("this is true of http://host:8000/v1") == "this is true of http://host:8000/v1"


def test_a_traceback_shows_no_secret():
    program = (
        "from orchestrator.terminal import hide_secrets_in_tracebacks\n"
        "hide_secrets_in_tracebacks()\n"
        "raise RuntimeError('refused sk-planted\\x1b[2J of s3://id:hunter2@bucket')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"LASER_API_KEY": "sk-planted", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "RuntimeError: refused ***\\x1b[2J of s3://id:***@bucket" in ended.stderr
    assert "planted" not in ended.stderr.replace("'refused sk-planted", "")
