"""Runs tokens with which several rows of a micro-batch begin only once: a group's samples share their prompt.

In: padded rows, those that begin alike one after another. Out: the tokens to run, packed in one row. All
layers but attention see each shared token once. Attention runs on the padded rows, as it does without
sharing. So a token's log-prob is the same to rounding, and a shared token's gradient is the sum over its
rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ATTENTION = "laser_shared_prefixes"
"""The name under which transformers knows `attend`. It makes no masks for a name that it does not know."""


@dataclass(frozen=True, eq=False)
class PackedRows:
    """The tokens of padded rows, without padding and with each shared prefix once."""

    input_ids: Int[Tensor, "1 packed"]
    position_ids: Int[Tensor, "1 packed"]
    place: Int[Tensor, "batch time"]
    """Where each token of the padded rows is in the packed row; 0 where there is padding."""
    first: Int[Tensor, "packed"]
    """The first place of each packed token in the padded rows, which are laid out one after another."""


def pack_rows(input_ids: Int[Tensor, "batch time"], read: Bool[Tensor, "batch time"]) -> PackedRows:
    """Pack rows that are padded on the right; each shares what it has in common with the row before.

    Args:
        read: Its last True in a row marks the row's last token.
    """
    batch, width = input_ids.shape
    columns = torch.arange(width, device=input_ids.device)
    lengths = torch.where(read, columns + 1, 0).amax(1, keepdim=True)
    is_token = columns < lengths
    same = (input_ids[1:] == input_ids[:-1]) & is_token[1:] & is_token[:-1]
    shared = torch.zeros_like(is_token)
    shared[1:] = same.int().cumprod(1).bool()
    new = is_token & ~shared
    place = torch.where(new, (new.flatten().cumsum(0) - 1).view(batch, width), 0)
    for row in range(1, batch):
        place[row] = torch.where(shared[row], place[row - 1], place[row])
    first = new.flatten().nonzero().flatten()
    return PackedRows(
        input_ids.flatten()[first][None], columns.expand(batch, width).flatten()[first][None], place, first
    )


def attend(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads packed size"],
    key: Float[Tensor, "1 key_heads packed size"],
    value: Float[Tensor, "1 key_heads packed size"],
    attention_mask: Any,
    packed_rows: PackedRows,
    **options: Any,
) -> tuple[Float[Tensor, "1 packed heads size"], None]:
    """Causal attention of each packed token to the tokens before it in its rows, by transformers' `sdpa`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, width = packed_rows.place.shape
    places = packed_rows.place.flatten()

    def padded(packed: Tensor) -> Float[Tensor, "batch heads time size"]:
        tokens = packed[0].transpose(0, 1).index_select(0, places)
        return tokens.view(batch, width, *tokens.shape[1:]).transpose(1, 2)

    output, _ = sdpa_attention_forward(module, padded(query), padded(key), padded(value), None, **options)
    return output.flatten(0, 1).index_select(0, packed_rows.first)[None], None


def register_attention() -> None:
    """Make `ATTENTION` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
