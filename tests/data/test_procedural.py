"""Tasks of reasoning-gym as a source; the whole library is checked by benchmarks/procedural.py."""

import pickle

import pytest

from actors.verifiers.loading import loaded_verifier
from actors.verifiers.procedural import score_entry
from orchestrator.config.sources import SourceConfig
from orchestrator.data.problems import ProblemSource
from orchestrator.data.procedural import task_of
from orchestrator.errors import ConfigError
from orchestrator.messages.verdicts import Status


def source_of(path):
    return ProblemSource(SourceConfig(path=path).filled("train", "question", "final_answer"))


def test_a_path_names_task_and_settings():
    assert task_of("reasoning_gym:leg_counting?size=20&max_animals=3") == (
        "leg_counting", {"seed": 0, "size": 20, "max_animals": 3},
    )  # fmt: skip
    assert task_of("reasoning_gym:gcd") == ("gcd", {"seed": 0})
    for wrong in ("reasoning_gym:", "reasoning_gym:gcd?size", "reasoning_gym:gcd?size=1&size=2"):
        with pytest.raises(ConfigError, match="write reasoning_gym:TASK"):
            task_of(wrong)


@pytest.mark.parametrize("task", ["leg_counting", "countdown", "basic_arithmetic"])
def test_the_own_answer_gets_what_the_own_scorer_gives(task):
    pytest.importorskip("reasoning_gym")
    source = source_of(f"reasoning_gym:{task}?size=5&seed=3")
    assert (len(source), source.settings.name) == (5, task)
    again = source_of(f"reasoning_gym:{task}?size=5&seed=3")
    assert [problem.messages for problem in source] == [problem.messages for problem in again]
    check = loaded_verifier(source.settings.verifier).check
    for problem in map(pickle.loads, map(pickle.dumps, source)):
        for response in (f"<answer>{problem.reference}</answer>", rf"So \boxed{{{problem.reference}}}."):
            assert check(response, problem).settled(0.5).status is Status.CORRECT
        assert check(r"\boxed{-17}", problem).reward < 0.5
        assert check("I do not know.", problem).status is Status.NO_ANSWER


def test_a_graded_scorer_gives_its_own_number():
    pytest.importorskip("reasoning_gym")
    (problem,) = source_of("reasoning_gym:leg_counting?size=1&seed=1")
    verdict = score_entry(f"<answer>about {problem.reference}</answer>", problem)
    assert 0 <= verdict.reward < 1
    assert verdict.detail.startswith("leg_counting: its scorer gives")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("reasoning_gym:leg_countin", "has no such task; nearest: leg_counting"),
        ("reasoning_gym:gcd?sizes=3", r"is refused \(TypeError"),
        ("reasoning_gym:gcd?min_numbers=0", r"is refused \(AssertionError"),
    ],
)
def test_a_task_that_is_none_is_refused(path, message):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=message):
        source_of(path)
