"""Worked solutions in, training samples out: tokens, which of them are targets, and batches of samples of like length.

In: a data file or data set with a problem and a solution a row. Out: `Demonstrations`, packed so that every rank can map them
without a copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32, Int64

from orchestrator.config.cold_start import SFTDataConfig
from orchestrator.data.problems import data_rows, field_text
from orchestrator.data.prompts import render_prompt
from orchestrator.data.tokens import ModelTokens, check_round_trip
from orchestrator.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUCKET_BATCHES = 20
"""Batches that are sorted by length together: enough that little is padding, few enough that the order stays random."""


@dataclass(frozen=True)
class TurnEnd:
    """How an assistant's turn ends in a conversation: the EOS token, and the token that the chat template puts after it."""

    eos: int
    following: int


@dataclass(frozen=True)
class Demonstrations:
    """Samples laid end to end. A sample's targets are all its tokens from its prompt's end on."""

    tokens: Int32[np.ndarray, "tokens"]
    starts: Int64[np.ndarray, "samples+1"]
    prompt_lengths: Int32[np.ndarray, "samples"]
    dropped: int = 0
    """Samples that were longer than `data.max_tokens`."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> Int64[np.ndarray, "samples"]:
        """Tokens of each sample."""
        return np.diff(self.starts)

    def sample(self, index: int) -> tuple[Int32[np.ndarray, "tokens"], int]:
        """A sample's tokens, and how many of them are its prompt."""
        return self.tokens[self.starts[index] : self.starts[index + 1]], int(self.prompt_lengths[index])

    def target_count(self, indices: list[int]) -> int:
        """Targets of these samples together."""
        return int((self.lengths[indices] - self.prompt_lengths[indices]).sum())


def load_demonstrations(data: SFTDataConfig, tokens: ModelTokens) -> Demonstrations:
    """Prompt (rendered as in training and evaluation), solution and EOS of every row; with a z_c, also the token after EOS.

    That last target pins down what follows EOS to one token that tells nothing about the solution, so that log pi(z_c) there is
    equally low after every solution, which `c_ref` assumes. z_c itself is never a target.

    Raises:
        DataError: A row has no such field, a solution holds z_c or EOS, or no sample is short enough.
        ConfigError: The tokenizer loses text, or z_c is what the chat template puts after EOS.
    """
    tokenizer = tokens.tokenizer
    end = turn_end(tokenizer, tokens.eos_tokens)
    if tokens.z_token is not None and tokens.z_token in (*tokens.eos_tokens, end.following):
        raise ConfigError(
            f"self_reward.token: {tokenizer.decode([tokens.z_token])!r} ends responses, or the chat template puts it after them; "
            "choose one that the model never uses"
        )
    reserved = {*tokens.eos_tokens} | ({tokens.z_token} if tokens.z_token is not None else set())
    ending = [end.eos] if tokens.z_token is None else [end.eos, end.following]
    samples: list[np.ndarray] = []
    prompt_lengths: list[int] = []
    dropped, shortest = 0, 0
    for source, row in data_rows(data.train, "train"):
        where = f"{data.train}, line {source}"
        problem = field_text(row, data.problem_field, "data.problem_field", where)
        solution = field_text(row, data.solution_field, "data.solution_field", where)
        if len(samples) + dropped < 100:
            check_round_trip(tokenizer, [problem, solution])
        prompt = render_prompt(tokenizer, problem, data.instruction)
        response = tokenizer.encode(solution, add_special_tokens=False)
        if found := reserved.intersection(response):
            raise DataError(
                f"{where}: '{data.solution_field}' holds {tokenizer.decode([min(found)])!r}, a token that only marks a response's end "
                "or the self-reward; remove it from the line"
            )
        length = len(prompt) + len(response) + 1
        if length > data.max_tokens:
            dropped += 1
            shortest = min(shortest or length, length)
            continue
        samples.append(np.array([*prompt, *response, *ending], dtype=np.int32))
        prompt_lengths.append(len(prompt))
    if not samples:
        raise DataError(
            f"{data.train}: none of its {dropped} samples fits data.max_tokens={data.max_tokens}, the shortest has {shortest} tokens"
            if dropped
            else f"{data.train}: holds no worked solution"
        )
    starts = np.cumsum([0, *map(len, samples)])
    return Demonstrations(np.concatenate(samples), starts, np.array(prompt_lengths, dtype=np.int32), dropped)


def turn_end(tokenizer: "PreTrainedTokenizerBase", eos_tokens: tuple[int, ...]) -> TurnEnd:
    """EOS and what follows it, as the chat template writes an answered message (a newline in ChatML, the next turn's start in Llama 3).

    A template that closes turns with none of `eos_tokens` leaves the tokenizer's own EOS, followed by padding, or by itself.
    """
    question: dict[str, Any] = {"role": "user", "content": "1+1="}
    prompt = render_prompt(tokenizer, question["content"], "")
    conversation = [question, {"role": "assistant", "content": "2"}, question]
    try:
        rendered = list(tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False))
    except Exception:  # a template is a program of its own: it may know single questions only
        rendered = []
    shared = next(
        (position for position, pair in enumerate(zip(prompt, rendered, strict=False)) if pair[0] != pair[1]),
        len(prompt),
    )
    for token, following in zip(rendered[shared:], rendered[shared + 1 :], strict=False):
        if token in eos_tokens:
            return TurnEnd(token, following)
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else eos_tokens[0]
    return TurnEnd(eos, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos)


def length_batches(lengths: Int64[np.ndarray, "samples"], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of sample indices, of like length within a batch; each epoch is a function of seed and epoch alone.

    An epoch leaves out the fewer than `batch_size` samples that fill no batch, other ones each time.
    Raises ValueError when there are fewer samples than one batch takes.
    """
    if len(lengths) < batch_size:
        raise ValueError(f"{len(lengths)} samples make no batch of {batch_size}")
    for epoch in count():
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(lengths))[: len(lengths) - len(lengths) % batch_size]
        batches: list[np.ndarray] = []
        for start in range(0, len(order), batch_size * BUCKET_BATCHES):
            window = order[start : start + batch_size * BUCKET_BATCHES]
            window = window[np.argsort(lengths[window], kind="stable")]
            batches += np.split(window, len(window) // batch_size)
        for position in random.permutation(len(batches)):
            yield batches[position].tolist()
