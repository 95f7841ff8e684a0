"""Which problems a step has, where steps are drawn ahead and a run is resumed."""

import json

import pytest

from orchestrator.config.sources import Source
from orchestrator.data.chat import ChatEncoder
from orchestrator.data.problems import ProblemSource
from orchestrator.data.training_prompts import TrainingPrompts
from orchestrator.errors import DataError
from orchestrator.training.step_problems import StepProblems
from tests.settings import configure
from tests.small_tokenizers import qwen

ROLLOUT = {"prompts_per_step": 3, "samples_per_prompt": 2}


@pytest.fixture
def problems(tmp_path):
    rows = [{"problem": f"problem {index}", "answer": index} for index in range(7)]
    path = tmp_path / "seven.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ProblemSource(Source(str(path), "seven"))
    return StepProblems(
        TrainingPrompts(ChatEncoder(qwen()), [source], 1000),
        configure(rollout=ROLLOUT),
    )


def drawn(problems, steps):
    return [(group.problem.text, group.request.seed) for step in steps for group in problems.draw(step)]


def test_steps_drawn_ahead_but_not_finished_are_drawn_again_after_a_resume(problems):
    uninterrupted = drawn(problems, range(1, 9))
    problems.restore(None)
    first = drawn(problems, [1, 2, 3])
    problems.finish(1)
    saved = dict(problems.state)
    assert saved["position"] == 3, "the place after the finished step, not after the drawn ones"
    problems.restore(saved)
    assert first[:3] + drawn(problems, range(2, 9)) == uninterrupted


def test_a_dropped_problem_is_drawn_no_more_and_the_next_one_takes_its_place(problems):
    uninterrupted = [text for text, _ in drawn(problems, range(1, 9))]
    problems.restore(None)
    drawn(problems, [1, 2])
    problems.finish(1)
    poisonous = next(group.problem for group in problems.draw(3))
    problems.drop(poisonous)
    after = [text for text, _ in drawn(problems, range(2, 7))]
    assert poisonous.text not in after
    expected = [text for text in uninterrupted[3:] if text != poisonous.text]
    assert after == expected[: len(after)]


def test_the_first_problems_are_drawn_without_those_that_are_dropped(problems):
    before = [prompt.problem.id for prompt in problems.first(3)]
    problems.drop(problems.first(1)[0].problem)
    assert [prompt.problem.id for prompt in problems.first(2)] == before[1:]
    assert len(problems.first(100)) == 6, "each once"


def test_a_resumed_run_draws_as_the_run_that_dropped(problems):
    poisonous = problems.draw(1)[1].problem
    problems.drop(poisonous)
    resumed = StepProblems(problems.prompts, configure(rollout=ROLLOUT), {(poisonous.source, poisonous.id)})
    assert drawn(problems, range(1, 9)) == drawn(resumed, range(1, 9))


def test_a_run_whose_problems_are_all_dropped_ends(problems):
    for problem in problems.prompts.first(7):
        problems.drop(problem)
    with pytest.raises(DataError, match="all 7 problems are dropped"):
        problems.draw(1)


def test_each_sample_has_a_seed_of_its_own(problems):
    seeds = [seed + sample for _, seed in drawn(problems, range(1, 9)) for sample in range(2)]
    assert len(set(seeds)) == len(seeds)
