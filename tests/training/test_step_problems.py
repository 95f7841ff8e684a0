"""Which problems a step has, where steps are drawn ahead and a run is resumed."""

import pytest

from orchestrator.training.step_problems import StepProblems
from tests.settings import configure


@pytest.fixture
def problems():
    class Prompts(list):
        def __init__(self):
            super().__init__(range(7))
            self.problems = [f"problem {index}" for index in range(7)]

        def token_ids(self, index):
            return [index]

    return StepProblems(Prompts(), configure(rollout={"prompts_per_step": 3, "samples_per_prompt": 2}))


def drawn(problems, steps):
    return [(group.problem, group.request.seed) for step in steps for group in problems.draw(step)]


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
