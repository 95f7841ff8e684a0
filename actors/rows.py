"""The token index: from samples to padded micro-batches, with the positions to read and the target of each.

In: samples of rollouts, or worked solutions. Out: the arguments of `zero3.LogProbModel`. The logits at a
position predict the next token, so the position before a target is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from orchestrator.messages.trajectories import Sample


@dataclass(frozen=True)
class RolloutRows:
    """A padded micro-batch of rollouts. Of a sample with R response tokens R + 1 positions are read.

    They are the last prompt token and every response token.
    """

    input_ids: Int[Tensor, "batch time"]
    read: Bool[Tensor, "batch time"]
    targets: Int[Tensor, "read"]
    is_token: Bool[Tensor, "read"]
    """True where the target is a response token, False at each sample's last position, which z_c follows."""
    sample: Int[Tensor, "tokens"]
    """Row of each response token."""
    behaviour_logprobs: Float[Tensor, "tokens"]
    behaviour_z_logprobs: Float[Tensor, "batch"]
    """The engine's log pi(z_c), NaN where a sample is unfinished."""


def rollout_rows(
    samples: Sequence[Sample], z_token: int | None, pad_token: int, device: torch.device
) -> RolloutRows:
    """Rows of a micro-batch of rollouts.

    The target after the last token is `z_token`: after EOS its log-prob is the score's. The last position is
    read with and without a `z_token`, so that self-rewarding changes no other number.
    """
    if not samples:
        # A rank without samples runs a padding token through the model, because its peers gather weights with
        # it.
        samples = [
            Sample(np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), False, math.nan)
        ]
    input_ids, read = _padded(
        [np.concatenate([sample.prompt_ids, sample.response_ids]) for sample in samples],
        [len(sample.prompt_ids) - 1 for sample in samples],
        pad_token,
    )
    responses = [len(sample.response_ids) for sample in samples]
    targets: list[int] = []
    is_token: list[bool] = []
    for sample, length in zip(samples, responses, strict=True):
        targets += [*sample.response_ids.tolist(), pad_token if z_token is None else z_token]
        is_token += [True] * length + [False]
    return RolloutRows(
        input_ids.to(device),
        read.to(device),
        torch.tensor(targets, device=device),
        torch.tensor(is_token, device=device),
        torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(responses)).to(device),
        torch.from_numpy(np.concatenate([sample.logprobs for sample in samples])).to(device),
        torch.tensor([sample.z_logprob for sample in samples], device=device),
    )


def as_prompt(sample: Sample) -> Sample:
    """The sample with its response taken as prompt: of its rows only the end is read, where the score is."""
    return replace(
        sample,
        prompt_ids=np.concatenate([sample.prompt_ids, sample.response_ids]),
        response_ids=sample.response_ids[:0],
        logprobs=sample.logprobs[:0],
    )


def demonstration_rows(
    samples: Sequence[tuple[Int32[np.ndarray, "tokens"], int]], pad_token: int, device: torch.device
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"], Int[Tensor, "targets"]]:
    """Input ids, positions to read and targets of a micro-batch of worked solutions.

    A sample of n tokens, of which p are its prompt, is read at positions p-1 to n-2. Their targets are its
    tokens p to n-1; the last token is a target only.

    Args:
        samples: Each sample's tokens, and how many of them are its prompt.
    """
    input_ids, read = _padded(
        [tokens[:-1] for tokens, _ in samples],
        [prompt_length - 1 for _, prompt_length in samples],
        pad_token,
    )
    targets = np.concatenate([tokens[prompt_length:] for tokens, prompt_length in samples]).astype(np.int64)
    return input_ids.to(device), read.to(device), torch.from_numpy(targets).to(device)


def _padded(
    rows: Sequence[Int32[np.ndarray, "tokens"]], first_read: Sequence[int], pad_token: int
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Rows padded on the right, and their positions from each row's `first_read` to its last token."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token)
    read = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, (row, first) in enumerate(zip(rows, first_read, strict=True)):
        input_ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
        read[number, first : len(row)] = True
    return input_ids, read
