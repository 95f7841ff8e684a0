"""How the sources of `data.train` and `data.eval` are written, and what each of them then means."""

import pytest

from orchestrator.config.schema import dump_config, with_overrides
from orchestrator.config.sources import absolute_sources, source_name, source_paths
from orchestrator.config.texts import parse_yaml
from orchestrator.errors import ConfigError
from tests.settings import configure


def train_sources(train, **data):
    return configure(data={"train": train, **data}).data.train_sources()


def test_one_source_a_mapping_and_a_list_are_all_lists_of_sources():
    for written in ("a/t.jsonl", {"path": "a/t.jsonl"}, ["a/t.jsonl"], [{"path": "a/t.jsonl"}]):
        (source,) = train_sources(written)
        assert (source.path, source.name, source.weight, source.split) == ("a/t.jsonl", "t", 1.0, "train")


def test_the_keys_of_data_are_the_defaults_of_every_source():
    data = {
        "train": ["a.jsonl", {"path": "b.csv", "answer_field": "gold", "instruction": "", "split": "dev"}],
        "eval": ["c.jsonl", {"path": "owner/set", "problem_field": "q", "answer_pattern": "(x)"}],
        "problem_field": "question", "answer_field": "final", "eval_answer_field": "label",
        "instruction": "Think.", "answer_pattern": "#### (.*)",
    }  # fmt: skip
    config = configure(data=data).data
    a, b = config.train_sources()
    assert (a.problem_field, a.answer_field, a.instruction, a.split) == (
        "question",
        "final",
        "Think.",
        "train",
    )
    assert (b.problem_field, b.answer_field, b.instruction, b.split) == ("question", "gold", "", "dev")
    c, d = config.eval_sources()
    assert (c.problem_field, c.answer_field, c.split) == ("question", "label", "test")
    assert (d.problem_field, d.answer_field, d.answer_pattern) == ("q", "label", "(x)")


def test_a_verifier_may_be_the_sources_own():
    numbers = {"name": "number", "tolerance": 0.01}
    sources = [{"path": "a.jsonl", "verifier": numbers}, {"path": "b.jsonl", "verifier": "pattern"}]
    with pytest.raises(ConfigError, match="pattern"):
        train_sources(sources)  # a pattern verifier needs its pattern
    sources[1]["verifier"] = {"name": "pattern", "pattern": "yes"}
    config = configure(data={"train": [*sources, "c.jsonl"]})
    a, b, c = config.data.train_sources(config.verification)
    assert '"tolerance": 0.01' in a.verifier
    assert c.verifier is None
    assert (a.needs_answer, b.needs_answer, c.needs_answer) == (True, False, True)
    assert len(config.verifier_texts) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": ["a/t.jsonl", "b/t.csv"]}, "data.train: two sources have the name t: give one"),
        ({"train": []}, "data.train: is an empty list"),
        ({"train": [{"path": "a.jsonl", "weigth": 2}]}, r"data\.train\.0\.weigth: unknown key.*weight"),
        ({"train": [{"path": "a.jsonl", "weight": 0}]}, r"data\.train\.0\.weight: must be above 0"),
        ({"train": {"weight": 2}}, r"data\.train\.0\.path: missing"),
        ({"train": 5}, r"data\.train: must be a list"),
        ({"train": [{"path": "a", "answer_pattern": "####"}]}, "has 0 groups: put the reference"),
        ({"train": [{"path": "a", "answer_pattern": "(a"}]}, "no regular expression"),
        ({"train": [{"path": "a", "rows": "mine"}]}, "rows: 'mine' is no function"),
        (
            {"train": [{"path": "a", "problem_template": "x", "problem_field": "y"}]},
            "leave problem_field out",
        ),
        ({"train": "a.jsonl", "eval": [{"path": "b.jsonl", "weight": 2}]}, "data.eval: b has a weight"),
    ],
)
def test_sources_that_mean_nothing_are_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        configure(data=data)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/train.jsonl", "train"),
        ("t.parquet.zst", "t"),
        ("data/part-*.jsonl.gz", "part"),
        ("data/folder/", "folder"),
        ("HuggingFaceH4/MATH-500", "MATH-500"),
        ("openai/gsm8k:main", "gsm8k-main"),
        ("reasoning_gym:leg_counting?size=20&seed=1", "leg_counting"),
        ("*.csv", "data"),
    ],
)
def test_a_source_is_named_after_its_path(path, name):
    assert source_name(path) == name


def test_sources_are_saved_as_they_were_written_and_read_back():
    written = ["a.jsonl", {"path": "b.jsonl", "weight": 2.0, "instruction": ""}]
    config = configure(data={"train": written, "eval": "c.jsonl"})
    saved = parse_yaml(dump_config(config), "test")
    assert saved["data"]["train"] == written
    assert saved["data"]["eval"] == "c.jsonl"
    assert with_overrides(config, ["run.seed=3"], "test").data == config.data


def test_paths_of_sources_are_found_and_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("")
    config = configure(data={"train": ["*.jsonl", {"path": "owner/name", "weight": 2.0}]})
    assert absolute_sources(config.data.train) == [
        str(tmp_path / "*.jsonl"), {"path": "owner/name", "weight": 2.0},
    ]  # fmt: skip
    assert source_paths(["a", {"path": "b"}]) == ["a", "b"]
    assert source_paths("a") == ["a"]
