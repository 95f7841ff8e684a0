"""vLLM logits processor behind the one-pass self-reward: after EOS it leaves only z_c, before EOS it bars z_c.

A request opts in with `SamplingParams.extra_args = {"self_reward_token": z_c, "eos_token_ids": [...]}`. It
must ignore EOS and stop at z_c: then the last sampled token of a finished response is z_c, and its raw
log-probability, which vLLM takes before any logits processor, is log pi(z_c | x, y, EOS). It costs one decode
step a sample. With `"response_given": True` the prompt holds the response and its EOS already: z_c is all
that is left from the first token on.
"""

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
    z_token: int
    eos_tokens: frozenset[int]
    output_ids: list[int]
    """vLLM's own running list of sampled tokens, not a copy."""
    response_given: bool = False
    """The prompt ends in the response's EOS."""


class LastTokenProcessor(LogitsProcessor):
    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.requests: dict[int, _Request] = {}
        self.barred: tuple[torch.Tensor, torch.Tensor] | None = None
        """Row and z_c of every request; None after the batch has changed."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if process_dict_updates(self.requests, batch_update, _request_state):
            self.barred = None

    def apply(self, logits: Float[torch.Tensor, "requests vocab"]) -> Float[torch.Tensor, "requests vocab"]:
        if not self.requests:
            return logits
        if self.barred is None:
            self.barred = _index(
                [(row, request.z_token) for row, request in self.requests.items()], logits.device
            )
        logits[self.barred] = -float("inf")
        # The last token is read here and not in update_state: placeholders are repaired only just before
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
    """The `extra_args` that switch the processor on for a request; `response_given` when its prompt ends in the response's EOS."""
    return {"self_reward_token": z_token, "eos_token_ids": eos_tokens, "response_given": response_given}


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
