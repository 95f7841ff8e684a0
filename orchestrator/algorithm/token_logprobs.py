"""Log-probs of given tokens from hidden states, without a [tokens, vocab] tensor of the whole batch.

The logits of a 7B model for one batch take tens of gigabytes. Here they exist for one chunk of tokens at a
time, in the forward and in the backward pass.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

SLICE_ELEMENTS = 2**25
"""Elements that are in float32 at a time (128 MiB): enough rows to fill a GPU, few against all logits."""


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, "vocab"] | None,
    targets: Int[Tensor, "tokens"],
    chunk_tokens: int = 2048,
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """Log-prob of each target and entropy of each distribution, in nats, at temperature 1.

    The matmul that gives the logits has the weight's dtype; all that follows is float32 (float64 for a
    float64 weight), for as many tokens at a time as `SLICE_ELEMENTS` holds. The log-probs can be
    differentiated once, by `hidden`, `weight` and `bias`; the entropies have no gradient. Memory peaks at one
    [chunk_tokens, vocab] tensor of the weight's dtype and a few float32 slices, and in the backward pass one
    float32 copy of the weight's gradient.

    Raises:
        ValueError: `chunk_tokens` is below 1.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    logprobs, entropy, _ = _TokenLogProbs.apply(
        hidden.to(weight.dtype), weight, bias, targets, chunk_tokens, None
    )
    return logprobs, entropy


class LogProbHead(torch.nn.Linear):
    """A language-model head that returns the log-probs of given tokens instead of logits.

    It is a module, so that ZeRO-3 gathers its weight.

    Attributes:
        watched: A token whose probability is kept at every position; None for none.
        watched_probs: Of the last forward pass, without a gradient; empty without such a token.
    """

    chunk_tokens = 2048
    watched: int | None = None
    watched_probs: Float[Tensor, "tokens"]

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear) -> "LogProbHead":
        """A head with the same Parameter objects: embeddings that are tied to them stay tied."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(  # type: ignore[override]
        self, hidden: Float[Tensor, "tokens hidden"], targets: Int[Tensor, "tokens"]
    ) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
        """Log-probs and entropies, as `token_logprobs` returns them."""
        logprobs, entropy, self.watched_probs = _TokenLogProbs.apply(
            hidden.to(self.weight.dtype), self.weight, self.bias, targets, self.chunk_tokens, self.watched
        )
        return logprobs, entropy


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_tokens: int,
        watched: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = hidden.new_empty(len(targets), dtype=torch.promote_types(weight.dtype, torch.float32))
        entropy = torch.empty_like(logprobs)
        watched_probs = torch.empty_like(logprobs if watched is not None else logprobs[:0])
        for chunk in _chunks(len(targets), chunk_tokens):
            logits = linear(hidden[chunk], weight, bias)
            for part, rows in _slices(chunk, logits):
                all_logprobs = logits[part].log_softmax(dim=-1, dtype=logprobs.dtype)
                logprobs[rows] = all_logprobs.gather(1, targets[rows, None]).squeeze(1)
                if watched is not None:
                    watched_probs[rows] = all_logprobs[:, watched].exp()
                entropy[rows] = -all_logprobs.exp().mul_(all_logprobs).sum(dim=-1)
        # Save the Parameter itself, as torch.nn.Linear does: between the passes ZeRO-3 frees its data, and
        # gathers it again for the backward pass.
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.chunk_tokens = chunk_tokens
        ctx.mark_non_differentiable(entropy, watched_probs)
        return logprobs, entropy, watched_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, *_no_gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=grad_logprobs.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=grad_logprobs.dtype) if needs_bias else None
        for chunk in _chunks(len(targets), ctx.chunk_tokens):
            # Slice by slice, the logits' gradient takes the place of the logits.
            grad_logits = linear(hidden[chunk], weight, bias)
            for part, rows in _slices(chunk, grad_logits):
                grad = grad_logprobs[rows, None]
                probs = grad_logits[part].softmax(dim=-1, dtype=grad.dtype)
                # d logprob / d logits = onehot(target) - softmax
                exact = probs.mul_(-grad).scatter_add_(1, targets[rows, None], grad)
                if grad_bias is not None:
                    grad_bias += exact.sum(dim=0)
                grad_logits[part] = exact
            if grad_hidden is not None:
                grad_hidden[chunk] = grad_logits @ weight
            if grad_weight is not None:
                # A CPU adds bfloat16 to float32 through a float32 copy, which is one of a slice here.
                for _, rows in _slices(slice(0, len(weight)), weight):
                    grad_weight[rows] += grad_logits[:, rows].T @ hidden[chunk]
            del grad_logits
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None,
            None,
            None,
        )


def _chunks(tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(start, min(start + chunk_tokens, tokens)) for start in range(0, tokens, chunk_tokens)]


def _slices(chunk: slice, matrix: Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of a chunk whose float32 copies are small: rows of its matrix, and the same rows of all."""
    rows = max(1, SLICE_ELEMENTS // matrix.shape[1])
    for part in _chunks(len(matrix), rows):
        yield part, slice(chunk.start + part.start, chunk.start + part.stop)
