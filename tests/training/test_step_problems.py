"""Which problems a step has, where steps are drawn ahead and a run is resumed."""

import json

import pytest

from orchestrator.config.sources import Source
from orchestrator.data.chat import ChatEncoder
from orchestrator.data.problems import ProblemSource
from orchestrator.data.training_prompts import TrainingPrompts
from orchestrator.training.step_problems import StepProblems
from tests.settings import configure
from tests.small_tokenizers import qwen


@pytest.fixture
def problems(tmp_path):
    rows = [{"problem": f"problem {index}", "answer": index} for index in range(7)]
    path = tmp_path / "seven.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ProblemSource(Source(str(path), "seven"))
    return StepProblems(
        TrainingPrompts(ChatEncoder(qwen()), [source], 1000),
        configure(rollout={"prompts_per_step": 3, "samples_per_prompt": 2}),
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


def test_each_sample_has_a_seed_of_its_own(problems):
    seeds = [seed + sample for _, seed in drawn(problems, range(1, 9)) for sample in range(2)]
    assert len(set(seeds)) == len(seeds)
