"""vLLM logits processor of the one-pass self-reward: it bars z_c before EOS and leaves only z_c after EOS.

A request switches it on with the `extra_args` of `sampling_extra_args`. It must ignore EOS and stop at z_c.
Then the last sampled token of a finished response is z_c. vLLM takes raw log-probs before any logits
processor, so that of z_c is log pi(z_c | x, y, EOS). The score costs one decode step a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates


@dataclass(frozen=True)
class _Request:
    """What the processor knows of one row of the batch."""

    z_token: int
    eos_tokens: frozenset[int]
    output_ids: list[int]
    """vLLM's own running list of sampled tokens, not a copy."""
    response_given: bool = False
    """The prompt ends in the response's EOS."""


class LastTokenProcessor(LogitsProcessor):
    """The processor of one engine; it changes only the rows of requests that switched it on."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.requests: dict[int, _Request] = {}
        self.barred: tuple[torch.Tensor, torch.Tensor] | None = None
        """Row and z_c of every request, as an index; None after the batch has changed."""

    def is_argmax_invariant(self) -> bool:
        """Greedy sampling needs the processor too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow vLLM's batch: requests join, leave and change their row."""
        if process_dict_updates(self.requests, batch_update, _request_state):
            self.barred = None

    def apply(self, logits: Float[torch.Tensor, "requests vocab"]) -> Float[torch.Tensor, "requests vocab"]:
        """Bar and force z_c in `logits`, which it changes."""
        if not self.requests:
            return logits
        if self.barred is None:
            self.barred = _index(
                [(row, request.z_token) for row, request in self.requests.items()], logits.device
            )
        logits[self.barred] = -float("inf")
        # Read here and not in update_state: vLLM replaces placeholders by real tokens only just before
        # sampling.
        ended = [
            (row, request.z_token)
            for row, request in self.requests.items()
            if request.response_given or (request.output_ids and request.output_ids[-1] in request.eos_tokens)
        ]
        if ended:
            rows, tokens = _index(ended, logits.device)
            logits[rows] = -float("inf")
            logits[rows, tokens] = 0.0
        return logits


def sampling_extra_args(z_token: int, eos_tokens: list[int], response_given: bool = False) -> dict[str, Any]:
    """The `extra_args` of vLLM's `SamplingParams` that switch the processor on.

    Args:
        response_given: Whether the prompt holds the response and its EOS, so that only z_c is left to sample.
    """
    return {"self_reward_token": z_token, "eos_token_ids": eos_tokens, "response_given": response_given}


def awaits_score(params: SamplingParams, output_ids: Sequence[int]) -> bool:
    """Whether a request has sampled its EOS, so that its next token is z_c."""
    extra = params.extra_args or {}
    return bool("self_reward_token" in extra and output_ids and output_ids[-1] in extra["eos_token_ids"])


def _request_state(
    params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
) -> _Request | None:
    extra = params.extra_args or {}
    if "self_reward_token" not in extra:
        return None
    return _Request(
        extra["self_reward_token"], frozenset(extra["eos_token_ids"]), output_ids, extra["response_given"]
    )


def _index(pairs: list[tuple[int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rows, tokens = torch.tensor(pairs, device=device).unbind(1)
    return rows, tokens
