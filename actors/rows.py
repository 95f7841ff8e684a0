"""From samples to a padded micro-batch: which positions are read, and which target each one has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orchestrator.messages.trajectories import Sample


@dataclass(frozen=True)
class _Rows:
    """A padded micro-batch: `read` marks each sample's R + 1 positions, from the last prompt token to the last token."""

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


def make_rows(samples: Sequence[Sample], z_token: int | None, pad_token: int, device: torch.device) -> _Rows:
    """Pad samples on the right. The target after the last token is `z_token`: at EOS its log-prob is the score's.

    The last position is read whether or not there is a `z_token`, so that self-rewarding changes no other number.
    """
    if not samples:
        # A rank without samples runs a padding token through the model, because its peers gather weights with it.
        samples = [
            Sample(np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), False, math.nan)
        ]
    prompts = [len(s.prompt_ids) for s in samples]
    responses = [len(s.response_ids) for s in samples]
    width = max(p + r for p, r in zip(prompts, responses, strict=True))
    input_ids = torch.full((len(samples), width), pad_token)
    read = torch.zeros(len(samples), width, dtype=torch.bool)
    targets, is_token = [], []
    for row, (sample, p, r) in enumerate(zip(samples, prompts, responses, strict=True)):
        input_ids[row, : p + r] = torch.from_numpy(
            np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int64)
        )
        read[row, p - 1 : p + r] = True
        targets += [*sample.response_ids.tolist(), pad_token if z_token is None else z_token]
        is_token += [True] * r + [False]
    return _Rows(
        input_ids.to(device),
        read.to(device),
        torch.tensor(targets, device=device),
        torch.tensor(is_token, device=device),
        torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(responses)).to(device),
        torch.from_numpy(np.concatenate([s.logprobs for s in samples])).to(device),
        torch.tensor([s.z_logprob for s in samples], device=device),
    )
