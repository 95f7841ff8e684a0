"""Problems in, prompts out, in an order that resumes.

In: a data file or data set, a tokenizer. Out: `Problem`s, their prompts as token ids (`PromptSet`), and the indices
of the next problems to sample (`PromptOrder`). Also here: what a tokenizer must be able to do, checked before a run.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from orchestrator.data.problems import Problem
from orchestrator.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(tokenizer: "PreTrainedTokenizerBase", problem_text: str, instruction: str) -> list[int]:
    """The prompt's token ids: one user message, the instruction on a line after the problem, and the assistant's turn opened."""
    content = f"{problem_text}\n{instruction}" if instruction else problem_text
    messages = [{"role": "user", "content": content}]
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    )


class PromptSet:
    """Problems with their prompts. Those longer than `max_prompt_tokens` are left out and counted in `dropped`."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        problems: Sequence[Problem],
        instruction: str,
        max_prompt_tokens: int,
    ):
        """Raises DataError when no problem is left."""
        self.problems: list[Problem] = []
        self._token_ids: list[np.ndarray] = []  # int32: lists of Python ints would take ten times the memory
        shortest = math.inf
        for problem in problems:
            token_ids = render_prompt(tokenizer, problem.text, instruction)
            shortest = min(shortest, len(token_ids))
            if len(token_ids) <= max_prompt_tokens:
                self.problems.append(problem)
                self._token_ids.append(np.array(token_ids, dtype=np.int32))
        self.dropped = len(problems) - len(self.problems)
        if not self.problems:
            raise DataError(
                f"none of the {len(problems)} problems fits rollout.max_prompt_tokens={max_prompt_tokens}: "
                f"the shortest prompt, with instruction and chat template, has {shortest} tokens"
            )

    def __len__(self) -> int:
        return len(self.problems)

    def token_ids(self, index: int) -> list[int]:
        return self._token_ids[index].tolist()


class PromptOrderState(TypedDict):
    """Where an order stands: JSON-ready, the same few bytes for any data set."""

    seed: int
    size: int
    epoch: int
    position: int


class PromptOrder:
    """An endless order of `size` problems: each epoch is its own shuffle, a function of seed and epoch alone."""

    def __init__(self, size: int, seed: int):
        if size < 1:
            raise ValueError(f"size is {size}; there must be a problem to order")
        self._size, self._seed = size, seed
        self._start_epoch(0)

    def next(self, n: int) -> list[int]:
        """The next `n` indices. One call may cross epochs, and only then hold an index twice."""
        indices: list[int] = []
        while len(indices) < n:
            if self._position == self._size:
                self._start_epoch(self._epoch + 1)
            taken = self._shuffled[self._position : self._position + n - len(indices)]
            self._position += len(taken)
            indices.extend(taken.tolist())
        return indices

    def state_dict(self) -> PromptOrderState:
        return {"seed": self._seed, "size": self._size, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: PromptOrderState) -> None:
        """Continues where the state was taken; raises ConfigError when it is of another data set or seed."""
        if state["size"] != self._size:
            raise ConfigError(
                f"the checkpoint was made with {state['size']} problems, now there are {self._size}: resume with the same data.train, "
                "data.instruction and rollout.max_prompt_tokens, or start a new run"
            )
        if state["seed"] != self._seed:
            raise ConfigError(
                f"the checkpoint was made with run.seed={state['seed']}, not {self._seed}: resume with it, or start a new run"
            )
        self._start_epoch(state["epoch"])
        self._position = state["position"]

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._position = epoch, 0
        self._shuffled = np.random.default_rng((self._seed, epoch)).permutation(self._size)
