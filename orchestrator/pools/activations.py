"""What a forward pass keeps for the backward pass, from the model's config.json alone: computes nothing.

The model runs on fake tensors, which have shapes and no memory, with one and with two layers. The saved
tensors of the second layer are those of every further one.
"""

import functools
from dataclasses import dataclass

from orchestrator.data.model_files import load_model_config

TRIED_ROWS = 2
TRIED_LENGTH = 64
USUAL_WIDTHS = 17
"""Hidden states that a layer keeps, where a model does not run on fake tensors: 34 bytes an element of
16 bits, without attention's products (Korthikanti et al. 2022, "Reducing activation recomputation", 4.1)."""


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass of some tokens keeps. The head is not in it, since it keeps no logits."""

    outside: int
    """Around the layers: embeddings, rotary angles, the last norm."""
    layer: int
    """Of each layer; with checkpointing only its input."""
    recomputed: int
    """Of the one layer that checkpointing computes again; 0 without checkpointing."""
    layers: int

    @property
    def total(self) -> int:
        return self.outside + self.layers * self.layer + self.recomputed


def activations(path: str, dtype: str, attention: str, checkpointing: bool, tokens: int) -> Activations:
    """The activations of a micro-batch of `tokens` tokens.

    Args:
        path: A model's folder or hub name.
        dtype: The forward pass's, by torch's name.
        attention: transformers' implementation. With `eager` the products of all pairs of positions are kept
            too, of which this counts those of rows of `TRIED_LENGTH` tokens.
    """
    text = load_model_config(path).get_text_config()
    attention = "sdpa" if attention.startswith("flash") else attention  # they keep the same tensors
    layers = text.num_hidden_layers
    width = text.hidden_size * (4 if dtype == "float32" else 2)
    try:
        one, two = (_saved_bytes(path, count, dtype, attention) for count in (1, 2))
    except (RuntimeError, ValueError, TypeError):  # code that asks for values, or a learner that refuses it
        outside, layer = 0.0, float(tokens * width * USUAL_WIDTHS)
    else:
        share = tokens / (TRIED_ROWS * TRIED_LENGTH)
        layer, outside = share * (two - one), share * (2 * one - two)
    if not checkpointing:
        return Activations(int(outside), int(layer), 0, layers)
    return Activations(int(outside), tokens * width, int(layer), layers)


@functools.cache
def _saved_bytes(path: str, layers: int, dtype: str, attention: str) -> int:
    """Bytes that a model of so many layers saves for its backward pass, parameters apart."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    config = load_model_config(path)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    saved: dict[int, torch.Tensor] = {}
    """By storage. The tensors are kept, so that no later storage takes a number that is counted."""
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention
        ).train()
        parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if (storage := tensor.untyped_storage()._cdata) not in parameters:
                saved[storage] = tensor
            return tensor

        ids = torch.zeros(TRIED_ROWS, TRIED_LENGTH, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.base_model(input_ids=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
