"""The problems of each step, as groups to generate, and the place in their order after each finished step.

In: the training prompts and the run's seed. Out: `Group`s. Problems of several steps may be drawn before the
first of these steps is finished: only a finished step moves the place that a checkpoint keeps.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.config.training import RunConfig
from orchestrator.data.training_prompts import Prompt, PromptDraws, TrainingPrompts
from orchestrator.errors import DataError
from orchestrator.messages.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.pools.collect import Group


class StepProblems:
    """Which problems each step has.

    Args:
        prompts: The training problems.
        config: The run's settings.
        dropped: Source and id of the problems that the run does not use; the next ones take their places.

    Attributes:
        state: The order's state after the last finished step.
    """

    def __init__(
        self, prompts: TrainingPrompts, config: RunConfig, dropped: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.prompts = prompts
        self.rollout = config.rollout
        self.seed = config.run.seed
        self.dropped = set(dropped)
        self.restore(None)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue after `state`, or begin with the first problem; what was drawn before is drawn again.

        Raises:
            ConfigError: The state belongs to other sources, another number of problems or another seed.
        """
        self._order = self.prompts.draws(self.seed)
        if state is not None:
            self._order.load_state_dict(state)
        self.state: dict[str, Any] = self._order.state_dict()
        self._state_after: dict[int, dict[str, Any]] = {}

    def metrics(self) -> dict[str, float]:
        """How many problems were skipped or dropped so far."""
        return {"data/skipped": float(self.state["skipped"]), "data/dropped": float(len(self.dropped))}

    def draw(self, step: int) -> list[Group]:
        """The problems of a step, which must follow the step of the last call.

        Each sample has its own seed, a function of step and position. So a step has the same samples on any
        engine and after any resume.

        Raises:
            DataError: As `PromptDraws.next`; or all problems are dropped.
        """
        samples, count = self.rollout.samples_per_prompt, self.rollout.prompts_per_step
        groups = []
        for position, prompt in enumerate(self._next(self._order, count)):
            seed = (self.seed << 32) + (step * count + position) * samples
            groups.append(Group(prompt.problem, GroupRequest(prompt.token_ids, samples, seed)))
        self._state_after[step] = self._order.state_dict()
        return groups

    def first(self, count: int) -> list[Prompt]:
        """The first problems of the order, which do not count as drawn; fewer where fewer are left.

        Raises:
            DataError: As `draw`.
        """
        return self._next(self.prompts.draws(self.seed), min(count, len(self.prompts) - len(self.dropped)))

    def drop(self, problem: Problem) -> None:
        """Use a problem no more, from the step after the last finished one on."""
        self.dropped.add((problem.source, problem.id))
        self.restore(self.state)

    def _next(self, order: PromptDraws, count: int) -> list[Prompt]:
        """The next problems in an order, without those that are dropped."""
        prompts: list[Prompt] = []
        if len(self.dropped) >= len(self.prompts):
            raise DataError(f"all {len(self.prompts)} problems are dropped, since workers died on them")
        while len(prompts) < count:
            prompts += [
                prompt
                for prompt in order.next(count - len(prompts))
                if (prompt.problem.source, prompt.problem.id) not in self.dropped
            ]
        return prompts

    def finish(self, step: int) -> None:
        """The step is learned: its problems are not drawn again."""
        self.state = self._state_after.pop(step)
