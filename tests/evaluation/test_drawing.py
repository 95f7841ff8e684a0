"""Which samples of an evaluation are still to be drawn, and with which seeds."""

from orchestrator.data.prompts import ProblemSet
from orchestrator.evaluation.drawing import missing_parts
from orchestrator.evaluation.samples import problem_seed
from orchestrator.messages.problems import Problem
from tests.evaluation.made import sample


class Prompts:
    """The part of a PromptSet that drawing reads."""

    def __init__(self, *ids):
        self.problems = [Problem.from_text(id_, "2+2", "4") for id_ in ids]

    def __len__(self):
        return len(self.problems)


def test_missing_samples_are_drawn_in_parts_and_keep_their_seeds():
    sets = [ProblemSet("s", Prompts("p", "q"), 10)]
    drawn = [sample(number, problem="p") for number in (0, 1, 2, 5)]
    parts = [
        (part.problem.id, part.first, part.count, part.seed - problem_seed(3, "s", part.problem.id))
        for part in missing_parts(sets, drawn, 3)
    ]
    assert parts == [("p", 3, 2, 3), ("p", 6, 4, 6), ("q", 0, 8, 0), ("q", 8, 2, 8)]
