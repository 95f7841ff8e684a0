"""Weights from the learner to the engines, in bounded chunks of parameters, each one flat byte array.

The object store maps a chunk's array into every reader without a copy. The learner packs, the engine unpacks,
so this module imports neither's libraries.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8


@dataclass
class WeightChunk:
    """Some parameters by checkpoint name, back to back in one byte array."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    dtype: str
    """torch's name of the parameters' type, such as `bfloat16`."""
    data: UInt8[np.ndarray, "bytes"]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters by name, as views of `data`."""
        dtype = getattr(torch, self.dtype)
        with warnings.catch_warnings():
            # Arrays mapped from the object store are read-only; nothing writes to these views.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            flat = torch.from_numpy(self.data).view(dtype)
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            count = math.prod(shape)
            yield name, flat[start : start + count].view(shape)
            start += count


def pack_chunks(
    parameters: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, chunk_bytes: int
) -> Iterator[WeightChunk]:
    """Cast parameters to `dtype` and pack them into chunks of at most `chunk_bytes`, or of one parameter."""
    names: list[str] = []
    pieces: list[torch.Tensor] = []
    size = 0

    def chunk() -> WeightChunk:
        data = _on_host(torch.cat([piece.reshape(-1) for piece in pieces]).view(torch.uint8))
        return WeightChunk(
            list(names),
            [tuple(piece.shape) for piece in pieces],
            str(dtype).removeprefix("torch."),
            data.numpy(),
        )

    for name, parameter in parameters:
        piece = parameter.detach().to(dtype)
        if pieces and size + piece.nbytes > chunk_bytes:
            yield chunk()
            names, pieces, size = [], [], 0
        names.append(name)
        pieces.append(piece)
        size += piece.nbytes
    if pieces:
        yield chunk()


def _on_host(data: torch.Tensor) -> torch.Tensor:
    """In CPU memory, page-locked when it comes from a GPU: an ordinary copy takes several times as long."""
    return torch.empty_like(data, device="cpu", pin_memory=True).copy_(data) if data.is_cuda else data
