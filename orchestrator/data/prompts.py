"""Problems in, prompts out, in an order that a resumed run repeats.

In: `Problem`s and a tokenizer. Out: their prompts as token ids (`PromptSet`), and the indices of the next
    problems to sample (`PromptOrder`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from orchestrator.data.chat import ChatEncoder
from orchestrator.data.texts import refuse_lone_surrogates
from orchestrator.errors import ConfigError, DataError
from orchestrator.messages.problems import ChatMessage, Problem
from orchestrator.terminal import progress_bar

RENDERED_TOGETHER = 1000
"""Prompts of a batch: enough for all cores, few enough that their texts take little memory."""


def render_prompt(
    chat: ChatEncoder, asked: str | Sequence[ChatMessage], instruction: str, where: str
) -> list[int]:
    """The token ids of a problem's prompt: the conversation, and the start of the assistant's turn.

    The last message is followed by the instruction, unless it is empty, on the next line.

    Args:
        asked: The conversation, or the text of its only message.
        where: The problem's file, line and field, for messages.

    Raises:
        DataError: A text would become control tokens, or the chat template fails on it.
    """
    turns = instructed(asked, instruction)
    for turn in turns:
        refuse_lone_surrogates(turn["content"], where)
    try:
        return chat.chat(turns)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # a template is a program and may raise any error
        raise DataError(
            f"{where}: the model's chat template fails on it ({type(error).__name__}: {error})"
        ) from error


def render_prompts(
    chat: ChatEncoder, problems: Sequence[Problem], instruction: str
) -> Iterator[list[list[int]]]:
    """The prompts of all problems, as `render_prompt` gives them, batch by batch.

    Raises:
        DataError: As `render_prompt`, for the first problem that it refuses.
    """
    for start in range(0, len(problems), RENDERED_TOGETHER):
        batch = problems[start : start + RENDERED_TOGETHER]
        conversations = [instructed(problem.messages, instruction) for problem in batch]
        prompts: list[list[int]] = []
        for problem, turns, token_ids in zip(batch, conversations, chat.chats(conversations), strict=True):
            if token_ids is None:
                token_ids = render_prompt(chat, problem.messages, instruction, problem.where)
            for turn in turns:
                refuse_lone_surrogates(turn["content"], problem.where)
            prompts.append(token_ids)
        yield prompts


def instructed(asked: str | Sequence[ChatMessage], instruction: str) -> list[ChatMessage]:
    """The conversation with the instruction, unless it is empty, on the line after its last message.

    Args:
        asked: The conversation, or the text of its only message.
    """
    *before, last = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    return [*before, last | {"content": f"{last['content']}\n{instruction}"} if instruction else last]


def encode_response(chat: ChatEncoder, text: str, where: str) -> list[int]:
    """The token ids of a given response, without EOS.

    Args:
        where: The response's file, line and field, for messages.

    Raises:
        DataError: The text would become control tokens.
    """
    refuse_lone_surrogates(text, where)
    try:
        return chat.response(text)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


class PromptSet:
    """Problems and their prompts.

    Attributes:
        problems: Those whose prompt has at most `max_prompt_tokens` tokens, in the order given.
        dropped: How many problems have a longer prompt.
    """

    def __init__(
        self,
        chat: ChatEncoder,
        problems: Sequence[Problem],
        instruction: str,
        max_prompt_tokens: int,
    ) -> None:
        """Render the prompts.

        Raises:
            DataError: No prompt is short enough, or as `render_prompt`.
        """
        self.problems: list[Problem] = []
        # int32 arrays take a tenth of the memory of lists of Python ints.
        self._token_ids: list[np.ndarray] = []
        shortest, rest = math.inf, iter(problems)
        with progress_bar("rendering prompts", len(problems)) as advance:
            for prompts in render_prompts(chat, problems, instruction):
                for token_ids, problem in zip(prompts, rest, strict=False):
                    shortest = min(shortest, len(token_ids))
                    if len(token_ids) <= max_prompt_tokens:
                        self.problems.append(problem)
                        self._token_ids.append(np.array(token_ids, dtype=np.int32))
                advance(len(prompts))
        self.dropped = len(problems) - len(self.problems)
        if not self.problems:
            raise DataError(
                f"none of the {len(problems)} problems fits rollout.max_prompt_tokens={max_prompt_tokens}: "
                f"the shortest prompt, with instruction and chat template, has {shortest} tokens"
            )

    def __len__(self) -> int:
        return len(self.problems)

    def token_ids(self, index: int) -> list[int]:
        """The prompt of `problems[index]`."""
        return self._token_ids[index].tolist()


@dataclass(frozen=True)
class ProblemSet:
    """A set of problems to evaluate."""

    name: str
    prompts: PromptSet
    samples_per_problem: int


class PromptOrderState(TypedDict):
    """The position of a `PromptOrder`, as JSON; its size does not depend on the number of problems."""

    seed: int
    size: int
    epoch: int
    position: int


class PromptOrder:
    """An endless order of `size` problems. Each epoch is a shuffle that depends on seed and epoch only."""

    def __init__(self, size: int, seed: int, salt: int | None = None) -> None:
        """Start at the first problem of the first epoch.

        Args:
            salt: Keeps orders of the same size and seed apart.

        Raises:
            ValueError: `size` is less than 1.
        """
        if size < 1:
            raise ValueError(f"size is {size}; an order needs at least one problem")
        self._size = size
        self._seed = seed
        self._salt = [] if salt is None else [salt]
        self._start_epoch(0)

    def next(self, n: int) -> list[int]:
        """The next `n` indices. An index comes twice only where the call crosses into the next epoch."""
        indices: list[int] = []
        while len(indices) < n:
            if self._position == self._size:
                self._start_epoch(self._epoch + 1)
            taken = self._shuffled[self._position : self._position + n - len(indices)]
            self._position += len(taken)
            indices.extend(taken.tolist())
        return indices

    def state_dict(self) -> PromptOrderState:
        """The state from which `load_state_dict` continues."""
        return {"seed": self._seed, "size": self._size, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: PromptOrderState | Mapping[str, Any]) -> None:
        """Continue with the index that follows `state`.

        Raises:
            ConfigError: The state belongs to another number of problems or another seed.
        """
        if state["size"] != self._size:
            raise ConfigError(
                f"the checkpoint was made with {state['size']} problems, but this configuration has "
                f"{self._size}: resume with the same data.train, or start a new run"
            )
        if state["seed"] != self._seed:
            raise ConfigError(
                f"the checkpoint was made with run.seed={state['seed']}, not {self._seed}: resume with that "
                "seed, "
                "or start a new run"
            )
        self._start_epoch(state["epoch"])
        self._position = state["position"]

    def _start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._position = 0
        self._shuffled = np.random.default_rng((self._seed, epoch, *self._salt)).permutation(self._size)
