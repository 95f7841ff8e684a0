"""Which changes of data and of model files a fingerprint sees, and how it names them."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.data.fingerprints import (
    changed_sources,
    files_print,
    from_tree,
    model_print,
    rows_print,
    saved_sources,
    to_tree,
    write_sources,
)
from orchestrator.data.problems import load_problems
from orchestrator.errors import ConfigError
from orchestrator.messages.problems import Problem
from orchestrator.storage.checkpoints import Checkpoints

STORED = Path(__file__).parents[1] / "stored"


def problems(count):
    return [Problem.from_text(f"p{n}", f"What is {n} + 1?", str(n + 1), line=n + 1) for n in range(count)]


def asking(text):
    return {"messages": Problem.from_text("", text, None).messages}


def change(before, now):
    return rows_print("t.jsonl", before).change(rows_print("t.jsonl", now))


@pytest.mark.parametrize("count", [1, 64, 256])
@pytest.mark.parametrize(
    "edit", [asking("What is 0?"), {"reference": "-7"}, {"id": "q"}, {"kind": "easy"}, asking("\ud83d")]
)
def test_any_changed_row_is_found_and_named(count, edit):
    row = random.Random(count).randrange(count)
    now = problems(count)
    now[row] = replace(now[row], **edit)
    assert change(problems(count), problems(count)) is None
    assert change(problems(count), now) == (
        f"{count} rows before, {count} now; the first that differs is row {row + 1}"
    )


def test_of_many_rows_the_block_is_named():
    now = problems(10_000)
    now[5_000] = replace(now[5_000], reference="0")
    fingerprint = rows_print("t.jsonl", now)
    assert len(json.dumps(to_tree({"data.train": fingerprint}))) < 8_000, "however many rows there are"
    assert change(problems(10_000), now) == (
        "10,000 rows before, 10,000 now; the first that differs is one of the rows 5,001 to 5,040"
    )


def test_two_swapped_rows_a_moved_border_and_another_count_differ():
    rows = problems(8)
    assert "row 3" in change(rows, [*rows[:2], rows[4], rows[3], rows[2], *rows[5:]])
    assert change([Problem.from_text("p", "ab", "c")], [Problem.from_text("p", "a", "bc")])
    assert change(rows, rows[:6]) == "8 rows before, 6 now; the rows of both are the same"
    assert change(rows, [*rows[1:]]).endswith("the first that differs is row 1")
    assert change(rows, problems(600)) == "8 rows before, 600 now"


def test_neither_place_nor_format_counts(tmp_path):
    rows = [{"problem": "1+1?", "answer": "2"}, {"problem": "2+2?", "answer": "4"}]
    lines, array = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text("\n\n".join(json.dumps(row) for row in rows))
    array.write_text(json.dumps(rows, indent=1))
    loaded = [load_problems(str(path), "problem", "answer") for path in (lines, array)]
    assert change(*loaded) is None


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "chat_template.jinja", "tokenizer.json"]
)
def test_a_changed_file_of_the_model_is_named(tmp_path, name):
    model = tmp_path / "model"
    shutil.copytree(STORED / "model", model)
    before = model_print(str(model))
    (model / "README.md").write_text("Not read by anything.")
    assert before.change(model_print(str(model))) is None
    content = bytearray((model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    assert before.change(model_print(str(model))) == f"{name} differs"
    (model / name).unlink()
    (model / "added.json").write_text("{}")
    assert before.change(model_print(str(model))) == ", ".join(
        sorted(["added.json is new", f"{name} is gone"])
    )


def test_fingerprints_read_back(tmp_path):
    (tmp_path / "mine.py").write_text("def check(): ...")
    sources = {
        "data.train": rows_print("t.jsonl", problems(3)),
        "verification.verifier": files_print("mine:check", tmp_path, ["mine.py"]),
    }
    assert from_tree(json.loads(json.dumps(to_tree(sources)))) == sources
    write_sources(tmp_path, sources)
    assert saved_sources(tmp_path) == sources
    assert changed_sources(sources, {}) == {}, "a source that is no longer named is a change of the settings"
    (tmp_path / "sources.json").write_text('{"data.train": {"rows": 3}}')
    with pytest.raises(ConfigError, match=r"sources\.json: is damaged"):
        saved_sources(tmp_path)


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run of the stored settings whose checkpoint holds its sources; no pool is started here."""
    from orchestrator.config.training import load_config
    from orchestrator.training.preparation import prepare

    shutil.copytree(STORED, tmp_path / "tests" / "stored", symlinks=True)
    monkeypatch.chdir(tmp_path)
    stored = Path("tests/stored")
    checkpoints = Checkpoints(stored / "run", keep=1)
    folder, state = checkpoints.newest()
    kept = folder.rename(tmp_path / "kept")

    def write(partial):
        for name in ("learner", "export"):
            shutil.copytree(kept / name, partial / name)

    sources = to_tree(prepare(load_config(stored / "run.yaml")).sources)
    checkpoints.save(replace(state, sources=sources), write)
    return stored


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("train.jsonl", "data.train"),
        ("test.jsonl", "data.eval"),
        ("model/model.safetensors", "model.path"),
        ("model/tokenizer.json", "model.path"),
    ],
)
def test_other_content_under_the_same_path_is_refused_on_resume(begun, capsys, monkeypatch, file, key):
    monkeypatch.setattr("orchestrator.training.run.connect", pytest.fail)
    path = begun / file
    content = path.read_text(errors="surrogateescape")
    if file.endswith(".jsonl"):
        rows = [json.loads(line) for line in content.splitlines()]
        rows[2]["answer"] = "12345"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        expected = f"{len(rows)} rows before, {len(rows)} now; the first that differs is row 3"
    elif file.endswith(".json"):
        path.write_text(json.dumps(json.loads(content), indent=1))
        expected = f"{path.name} differs"
    else:
        weights = bytearray(path.read_bytes())
        weights[-1] ^= 1
        path.write_bytes(weights)
        expected = f"{path.name} differs"
    before = sorted(begun.rglob("*"))
    assert main(["train", "tests/stored/run.yaml", "run.steps=4"]) == 2
    message = capsys.readouterr().err
    assert f"\n  {key}: tests/stored/" in message
    assert expected in message
    assert "Put back what it was begun with" in message
    assert sorted(begun.rglob("*")) == before
