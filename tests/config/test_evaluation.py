"""The settings of `laser eval`: what is evaluated, and where the results go."""

from pathlib import Path

import pytest

from orchestrator.config.evaluation import EvalConfig, default_folder, requested_sets
from orchestrator.config.schema import validate
from orchestrator.errors import ConfigError


def configure(**settings):
    return validate(settings, EvalConfig, "test")


def entries(*data, **settings):
    requests = requested_sets(configure(model="m", data=list(data), **settings))
    return [(request.name, request.source.path, request.samples_per_problem) for request in requests]


def test_a_set_is_a_name_a_file_or_a_data_set_with_its_samples():
    assert entries("math500", "aime24", "data/mine.jsonl", "owner/name") == [
        ("math500", "HuggingFaceH4/MATH-500", 2),
        ("aime24", "HuggingFaceH4/aime_2024", 32),
        ("mine", "data/mine.jsonl", 8),
        ("name", "owner/name", 8),
    ]
    assert entries("aime24:4", "mine.jsonl:16", "owner/name:config", samples_per_problem=3) == [
        ("aime24", "HuggingFaceH4/aime_2024", 4),
        ("mine", "mine.jsonl", 16),
        ("name-config", "owner/name:config", 3),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "m"}, "needs --model and --data"),
        ({"data": ["math500"]}, "needs --model and --data"),
        ({"model": "m", "data": ["a/t.jsonl", "b/t.jsonl"]}, "two sets have the name t"),
        ({"samples": "s.jsonl", "data": ["math500"]}, "give one of them"),
    ],
)
def test_requests_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        requested_sets(configure(**settings))


def test_the_default_folder_names_model_and_sets():
    assert default_folder(configure(model="runs/mine/export"), ["a", "b"]) == Path(
        "runs/evaluations/mine-a-b"
    )
    assert default_folder(configure(model="models:/lasers@best"), ["a"]) == Path(
        "runs/evaluations/lasers-best-a"
    )
