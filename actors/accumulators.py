"""Gradients of several loss terms, each summed on its own, in the shard of one ZeRO-3 rank.

In: the term whose backward passes come next, and at last a factor for each term. Out: the sum of all terms in
DeepSpeed's own buffer, to which further backward passes add.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from orchestrator.messages.batches import Term

EXCHANGED_ELEMENTS = 10_000_000
"""Gradients that change places at a time; a copy of them exists meanwhile."""


class TermGradients:
    """The gradients of each term so far.

    DeepSpeed adds the gradients of all backward passes up in one flat float32 buffer. The term whose turn it
    is owns that buffer, and the sums of the others wait in copies. So n terms need n - 1 copies.

    Args:
        engine: DeepSpeed's, with ZeRO-3 and without offloading.

    Raises:
        ValueError: ZeRO-3 offloads: it then keeps gradients elsewhere.
    """

    def __init__(self, engine: Any) -> None:
        if engine.optimizer.offload_optimizer:
            raise ValueError(
                "learning.stream: needs the gradients on the ranks' own device, but learning.offload or "
                "learning.deepspeed offloads the optimizer: set learning.stream=false"
            )
        self.engine = engine
        self.current: Term | None = None
        """The term that owns DeepSpeed's buffer."""
        self.waiting: dict[Term, Float32[Tensor, shard]] = {}
        self.spare: list[Float32[Tensor, shard]] = []
        """Copies of earlier steps, to use again."""

    @property
    def buffer(self) -> Float32[Tensor, "shard"]:
        """DeepSpeed's, of which each parameter's gradient is a view."""
        return self.engine.optimizer.grad_partitions_flat_buffer

    def reserve(self, copies: int) -> bool:
        """Allocate copies for later; returns whether the device has the memory."""
        try:
            self.spare += [torch.empty_like(self.buffer) for _ in range(copies - len(self.spare))]
        except torch.OutOfMemoryError:
            self.spare.clear()
            return False
        return True

    def turn_to(self, term: Term) -> None:
        """Add the gradients of the next backward passes to `term`'s."""
        if term is self.current:
            return
        optimizer = self.engine.optimizer
        found = self.waiting.pop(term, None)
        if self.current is not None:
            copy = found
            if copy is None:
                copy = self.spare.pop() if self.spare else torch.empty_like(self.buffer)
                copy.copy_(self.buffer)
            else:
                self._exchange(copy)
            self.waiting[self.current] = copy
        self.current = term
        # The next backward pass replaces what is in the buffer, unless it counts as a later one.
        optimizer.zero_grad()
        optimizer.micro_step_id = 0 if found is None else 1

    def combine(self, factors: Mapping[Term, float]) -> None:
        """Make DeepSpeed's buffer the sum of all terms, each times its factor; further passes add to it."""
        assert self.current is not None, "no term had its turn"
        self.buffer.mul_(factors[self.current])
        for term, gradient in self.waiting.items():
            self.buffer.add_(gradient, alpha=factors[term])
        self._forget()
        self.engine.optimizer.micro_step_id = 1
        # No backward pass need follow before the optimiser step.
        self.engine.set_gradient_accumulation_boundary(True)

    def discard(self) -> None:
        """Drop all gradients: the next backward pass is the first of its mini-batch."""
        self._forget()

    def _forget(self) -> None:
        self.spare += self.waiting.values()
        self.waiting.clear()
        self.current = None
        self.engine.optimizer.zero_grad()

    def _exchange(self, copy: Float32[Tensor, "shard"]) -> None:
        for mine, other in zip(
            self.buffer.split(EXCHANGED_ELEMENTS), copy.split(EXCHANGED_ELEMENTS), strict=True
        ):
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)
