"""Worked solutions for the supervised cold start.

In: a data file or data set whose rows hold a problem and a solution. Out: `Demonstrations`: token ids and
    which of them are targets, in flat arrays that every rank can map without a copy; and batches of samples
    of similar length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from orchestrator.config.cold_start import SFTDataConfig
from orchestrator.data.chat import ChatEncoder
from orchestrator.data.problems import asked_messages
from orchestrator.data.prompts import encode_response, render_prompt
from orchestrator.data.rows import open_rows, read_rows
from orchestrator.data.texts import Row, field_text
from orchestrator.data.tokens import ModelTokens, check_round_trip
from orchestrator.errors import ConfigError, DataError
from orchestrator.messages.problems import ChatMessage

BUCKET_BATCHES = 20
"""The samples of so many batches are sorted by length together: enough for little padding, and few enough
to keep the order random."""


@dataclass(frozen=True)
class TurnEnd:
    """The end of an assistant's turn in a conversation."""

    eos: int
    following: int
    """The token that the chat template puts after EOS."""


@dataclass(frozen=True)
class Demonstrations:
    """Samples, concatenated. A sample's targets are all of its tokens after the prompt."""

    tokens: Int32[np.ndarray, "tokens"]
    starts: Int64[np.ndarray, "samples+1"]
    prompt_lengths: Int32[np.ndarray, "samples"]
    dropped: int = 0
    """Samples that were left out because they are longer than `data.max_tokens`."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> Int64[np.ndarray, "samples"]:
        """The number of tokens of each sample."""
        return np.diff(self.starts)

    def sample(self, index: int) -> tuple[Int32[np.ndarray, "tokens"], int]:
        """A sample's tokens, and the length of its prompt."""
        return self.tokens[self.starts[index] : self.starts[index + 1]], int(self.prompt_lengths[index])

    def target_count(self, indices: list[int]) -> int:
        """The number of targets of these samples together."""
        return int((self.lengths[indices] - self.prompt_lengths[indices]).sum())


def load_demonstrations(data: SFTDataConfig, tokens: ModelTokens) -> Demonstrations:
    """Read every row as prompt (rendered as in training and evaluation), solution and EOS.

    With a z_c, the token that the chat template puts after EOS is one more target. The model so learns to
    predict the same token after every solution, and log pi(z_c) there is equally low after all of them, which
    `c_ref` assumes. z_c itself is never a target.

    Raises:
        DataError: A row lacks a field or has a text that cannot be used, or no sample is short enough.
        ConfigError: The tokenizer changes a text, or z_c is an EOS token or what the chat template puts after
            EOS.
    """
    tokenizer = tokens.tokenizer
    end = turn_end(tokens.chat, tokens.eos_tokens)
    if tokens.z_token is not None and tokens.z_token in (*tokens.eos_tokens, end.following):
        raise ConfigError(
            f"self_reward.token: {tokenizer.decode([tokens.z_token])!r} ends responses, or the chat template "
            "puts it "
            "after them; choose a token that the model never uses"
        )
    reserved = {*tokens.eos_tokens} | ({tokens.z_token} if tokens.z_token is not None else set())
    ending = [end.eos] if tokens.z_token is None else [end.eos, end.following]
    samples: list[np.ndarray] = []
    prompt_lengths: list[int] = []
    dropped, shortest = 0, 0
    for where, messages, solution in _solved_problems(data):
        if len(samples) + dropped < 100:
            check_round_trip(tokenizer, [*(message["content"] for message in messages), solution])
        prompt = render_prompt(tokens.chat, messages, data.instruction, f"{where}: '{data.problem_field}'")
        response = encode_response(tokens.chat, solution, f"{where}: '{data.solution_field}'")
        if found := reserved.intersection(response):
            raise DataError(
                f"{where}: '{data.solution_field}' contains {tokenizer.decode([min(found)])!r}, which ends a "
                "response or is the self-reward's token; remove it from the line"
            )
        length = len(prompt) + len(response) + 1
        if length > data.max_tokens:
            dropped += 1
            shortest = min(shortest or length, length)
            continue
        samples.append(np.array([*prompt, *response, *ending], dtype=np.int32))
        prompt_lengths.append(len(prompt))
    if not samples:
        if not dropped:
            raise DataError(f"{data.train}: holds no worked solution")
        raise DataError(
            f"{data.train}: none of its {dropped} samples fits data.max_tokens={data.max_tokens}; "
            f"the shortest has {shortest} tokens"
        )
    starts = np.cumsum([0, *map(len, samples)])
    return Demonstrations(np.concatenate(samples), starts, np.array(prompt_lengths, dtype=np.int32), dropped)


def _solved_problems(data: SFTDataConfig) -> Iterator[tuple[str, tuple[ChatMessage, ...], str]]:
    """The place, conversation and solution of each row."""
    rows = open_rows(data.train)

    def texts(row: Row, number: int) -> tuple[str, tuple[ChatMessage, ...], str]:
        file, line = rows.place(number)
        where = f"{file}, line {line}"
        messages = asked_messages(row, data.problem_field, "data.problem_field", where)
        return where, messages, field_text(row, data.solution_field, "data.solution_field", where)

    return read_rows(rows, texts)


def turn_end(chat: ChatEncoder, eos_tokens: tuple[int, ...]) -> TurnEnd:
    """EOS and the token after it, as the chat template writes an answered message.

    In ChatML a newline follows, in Llama 3 the start of the next turn. Where the template ends turns without
    one of `eos_tokens`, EOS is the tokenizer's, followed by the padding token or, without one, by itself.
    """
    question: dict[str, Any] = {"role": "user", "content": "1+1="}
    tokenizer = chat.tokenizer
    prompt = chat.chat([question])
    conversation = [question, {"role": "assistant", "content": "2"}, question]
    try:
        rendered = chat.answered(conversation)
    except Exception:  # a template is a program: it may accept single questions only
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
    """Endless batches of the indices of samples of similar length. An epoch depends on seed and epoch only.

    Each epoch leaves out other samples: fewer than `batch_size`, which do not fill a batch.

    Raises:
        ValueError: There are fewer samples than one batch takes.
    """
    if len(lengths) < batch_size:
        raise ValueError(f"{len(lengths)} samples do not fill a batch of {batch_size}")
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
