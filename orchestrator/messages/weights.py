"""Weights from the learner to the engines, in bounded chunks of parameters, each one flat byte array.

The object store maps a chunk's array into every reader without a copy. The learner packs, the engine unpacks,
so this module imports neither's libraries.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

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
    tied: dict[str, list[str]] = field(default_factory=dict)
    """Further names of a parameter, by the name under which it is here. A tied head is sent once, and the
    receiver loads it under each of its names."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters by each of their names, as views of `data`."""
        dtype = getattr(torch, self.dtype)
        with warnings.catch_warnings():
            # Arrays mapped from the object store are read-only; nothing writes to these views.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            flat = torch.from_numpy(self.data).view(dtype)
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            count = math.prod(shape)
            for each in (name, *self.tied.get(name, ())):
                yield each, flat[start : start + count].view(shape)
            start += count


def pack_chunks(
    parameters: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    chunk_bytes: int,
    tied: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[WeightChunk]:
    """Cast parameters to `dtype` and pack them into chunks of at most `chunk_bytes`, or of one parameter.

    Args:
        parameters: Each is copied before the next one is asked for.
        tied: Further names of some parameters, each with the name under which it comes.
    """
    chunk: _OpenChunk | None = None
    for name, parameter in parameters:
        size = parameter.numel() * dtype.itemsize
        if chunk is not None and chunk.size + size > chunk_bytes:
            yield chunk.close(tied)
            chunk = None
        if chunk is None:
            chunk = _OpenChunk(max(size, chunk_bytes), dtype, parameter.device)
        chunk.add(name, parameter)
    if chunk is not None:
        yield chunk.close(tied)


class _OpenChunk:
    """A chunk that still takes parameters.

    Args:
        capacity: Bytes that it can take. On a CPU only those that are written take memory.
    """

    def __init__(self, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.names: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.data = torch.empty(capacity, dtype=torch.uint8, device=device)
        self.size = 0

    def add(self, name: str, parameter: torch.Tensor) -> None:
        end = self.size + parameter.numel() * self.dtype.itemsize
        room = self.data[self.size : end].view(self.dtype)
        room.view(parameter.shape).copy_(parameter.detach())
        self.names.append(name)
        self.shapes.append(tuple(parameter.shape))
        self.size = end

    def close(self, tied: Mapping[str, str]) -> WeightChunk:
        further = {name: [other for other, first in tied.items() if first == name] for name in self.names}
        return WeightChunk(
            self.names,
            self.shapes,
            str(self.dtype).removeprefix("torch."),
            _on_host(self.data[: self.size]).numpy(),
            {name: others for name, others in further.items() if others},
        )


def _on_host(data: torch.Tensor) -> torch.Tensor:
    """In CPU memory, page-locked when it comes from a GPU: an ordinary copy takes several times as long."""
    return torch.empty_like(data, device="cpu", pin_memory=True).copy_(data) if data.is_cuda else data
