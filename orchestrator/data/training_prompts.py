"""The training problems of all sources, in an order that a resumed run repeats; rendered when they are drawn.

In: sources with weights, and a tokenizer. Out: the next problems with their prompts (`PromptDraws`). A prompt
that is too long is skipped and counted, and the next one of its source takes its place.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.data.chat import ChatEncoder
from orchestrator.data.problems import ProblemSource
from orchestrator.data.prompts import PromptOrder, render_prompt, render_prompts
from orchestrator.errors import ConfigError, DataError
from orchestrator.messages.problems import Problem

SAMPLED = 1000
"""So many problems are rendered before a run starts; those of a small source are all of them."""


@dataclass(frozen=True)
class Prompt:
    """A problem and its prompt."""

    problem: Problem
    token_ids: list[int]


@dataclass(frozen=True)
class PromptSample:
    """What the first prompts of all sources tell."""

    prompts: int
    too_long: int
    """Those with more than `rollout.max_prompt_tokens` tokens."""
    longest: int
    """Tokens of the longest one that fits."""


class TrainingPrompts:
    """The training problems of all sources.

    Attributes:
        sources: At least one.
    """

    def __init__(self, chat: ChatEncoder, sources: Sequence[ProblemSource], max_prompt_tokens: int) -> None:
        self.sources = list(sources)
        self._chat = chat
        self._limit = max_prompt_tokens

    def __len__(self) -> int:
        """The number of problems, with those whose prompt is too long."""
        return sum(map(len, self.sources))

    def first(self, count: int) -> list[Problem]:
        """The first problems of each source, at most `count` of all."""
        share = -(-count // len(self.sources))
        return [problem for source in self.sources for problem in source[:share]][:count]

    def render(self, source: ProblemSource, number: int) -> Prompt | None:
        """A problem of a source with its prompt; None where that is too long.

        Raises:
            DataError: As `render_prompt`.
        """
        problem = source[number]
        token_ids = render_prompt(self._chat, problem.messages, source.settings.instruction, problem.where)
        return Prompt(problem, token_ids) if len(token_ids) <= self._limit else None

    def first_prompt(self, source: ProblemSource) -> Prompt:
        """The first prompt of a source that is short enough.

        Raises:
            DataError: There is none, or as `render_prompt`.
        """
        prompts = (self.render(source, number) for number in range(len(source)))
        prompt = next((found for found in prompts if found is not None), None)
        if prompt is None:
            raise self.too_long(source)
        return prompt

    def check(self, count: int = SAMPLED) -> PromptSample:
        """Render the first problems of each source, at most `count` of it.

        Raises:
            DataError: None of a source is short enough, or as `render_prompt`.
        """
        rendered, too_long, longest = 0, 0, 0
        for source in self.sources:
            problems = source[: min(count, len(source))]
            lengths = [
                len(token_ids)
                for prompts in render_prompts(self._chat, problems, source.settings.instruction)
                for token_ids in prompts
            ]
            fitting = [length for length in lengths if length <= self._limit]
            if not fitting:
                raise self._none_fits(source, len(lengths), min(lengths))
            rendered, too_long = rendered + len(lengths), too_long + len(lengths) - len(fitting)
            longest = max(longest, *fitting)
        return PromptSample(rendered, too_long, longest)

    def draws(self, seed: int) -> "PromptDraws":
        """The order of a run with this seed, from its first problem."""
        return PromptDraws(self, seed)

    def _none_fits(self, source: ProblemSource, count: int, shortest: int) -> DataError:
        return DataError(
            f"{source.settings.path}: none of the {count} problems fits rollout.max_prompt_tokens="
            f"{self._limit}: the shortest prompt, with instruction and chat template, has {shortest} tokens"
        )

    def too_long(self, source: ProblemSource) -> DataError:
        """The error for a source none of whose prompts is short enough."""
        shortest = min(
            len(render_prompt(self._chat, problem.messages, source.settings.instruction, problem.where))
            for problem in source[:SAMPLED]
        )
        return self._none_fits(source, len(source), shortest)


class PromptDraws:
    """An endless order over the problems of all sources.

    Each source has an order of its own (`PromptOrder`). Of any number of problems in a row, each source gives
    the share that its weight has in the sum of the weights, to within one problem.

    Attributes:
        skipped: Prompts that were too long, since the run's start.
    """

    def __init__(self, prompts: TrainingPrompts, seed: int) -> None:
        self._prompts = prompts
        self._seed = seed
        self.skipped = 0
        sources = prompts.sources
        several = len(sources) > 1
        self._orders = [
            PromptOrder(len(source), seed, zlib.crc32(source.settings.name.encode()) if several else None)
            for source in sources
        ]
        total = sum(source.settings.weight for source in sources)
        self._shares = [source.settings.weight / total for source in sources]
        self._taken = [0] * len(sources)

    def next(self, n: int) -> list[Prompt]:
        """The next `n` problems whose prompts are short enough.

        Raises:
            DataError: A whole epoch of a source is too long, or a problem cannot be rendered.
        """
        return [self._next_of(self._next_source()) for _ in range(n)]

    def state_dict(self) -> dict[str, Any]:
        """The state from which `load_state_dict` continues, as JSON."""
        if len(self._orders) == 1:
            return {**self._orders[0].state_dict(), "skipped": self.skipped}
        names = [source.settings.name for source in self._prompts.sources]
        return {
            "seed": self._seed,
            "skipped": self.skipped,
            "taken": dict(zip(names, self._taken, strict=True)),
            "orders": {name: order.state_dict() for name, order in zip(names, self._orders, strict=True)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the problem that follows `state`.

        Raises:
            ConfigError: The state belongs to other sources, another number of problems or another seed.
        """
        names = [source.settings.name for source in self._prompts.sources]
        states = state.get("orders", {names[0]: state})
        if list(states) != names:
            raise ConfigError(
                f"the checkpoint was made with the sources {', '.join(states)}, but this configuration has "
                f"{', '.join(names)}: resume with the same data.train, or start a new run"
            )
        for name, order in zip(names, self._orders, strict=True):
            order.load_state_dict(states[name])
        self._taken = [state["taken"][name] for name in names] if "taken" in state else self._taken
        self.skipped = state.get("skipped", 0)

    def _next_source(self) -> int:
        """The source that is furthest behind its share."""
        total = sum(self._taken) + 1
        behind = [share * total - taken for share, taken in zip(self._shares, self._taken, strict=True)]
        index = behind.index(max(behind))
        self._taken[index] += 1
        return index

    def _next_of(self, index: int) -> Prompt:
        source = self._prompts.sources[index]
        for _ in range(len(source)):
            (number,) = self._orders[index].next(1)
            prompt = self._prompts.render(source, number)
            if prompt is not None:
                return prompt
            self.skipped += 1
        raise self._prompts.too_long(source)
