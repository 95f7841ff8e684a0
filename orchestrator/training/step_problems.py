"""The problems of each step, as groups to generate, and the place in their order after each finished step.

In: the training prompts and the run's seed. Out: `Group`s. Problems of several steps may be drawn before the
first of these steps is finished: only a finished step moves the place that a checkpoint keeps.
"""

from collections.abc import Mapping
from typing import Any

from orchestrator.config.training import RunConfig
from orchestrator.data.prompts import PromptOrder, PromptOrderState, PromptSet
from orchestrator.messages.requests import GroupRequest
from orchestrator.pools.collect import Group


class StepProblems:
    """Which problems each step has.

    Attributes:
        state: The order's state after the last finished step.
    """

    def __init__(self, prompts: PromptSet, config: RunConfig) -> None:
        self.prompts = prompts
        self.rollout = config.rollout
        self.seed = config.run.seed
        self.restore(None)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue after `state`, or begin with the first problem; what was drawn before is drawn again.

        Raises:
            ConfigError: The state belongs to another number of problems or another seed.
        """
        self._order = PromptOrder(len(self.prompts), self.seed)
        if state is not None:
            self._order.load_state_dict(state)  # type: ignore[arg-type]
        self.state: PromptOrderState = self._order.state_dict()
        self._state_after: dict[int, PromptOrderState] = {}

    def draw(self, step: int) -> list[Group]:
        """The problems of a step, which must follow the step of the last call.

        Each sample has its own seed, a function of step and position. So a step has the same samples on any
        engine and after any resume.
        """
        samples, count = self.rollout.samples_per_prompt, self.rollout.prompts_per_step
        groups = []
        for position, index in enumerate(self._order.next(count)):
            seed = (self.seed << 32) + (step * count + position) * samples
            request = GroupRequest(self.prompts.token_ids(index), samples, seed)
            groups.append(Group(self.prompts.problems[index], request))
        self._state_after[step] = self._order.state_dict()
        return groups

    def finish(self, step: int) -> None:
        """The step is learned: its problems are not drawn again."""
        self.state = self._state_after.pop(step)
