"""Weights from the learner to the engines, in bounded chunks of parameters, each one flat byte array.

The object store maps a chunk's array into every reader without a copy. The learner packs, the engine unpacks,
so this module imports neither's libraries.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8


@dataclass(frozen=True)
class PublishedWeights:
    """One version of the weights in the object store."""

    chunks: list[Any]
    """References to its `WeightChunk`s; none from other ranks than rank 0."""
    size: int
    """Bytes of all chunks; each engine reads all of them."""


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

    A chunk is valid until the next one is asked for. All of them use the same memory, because memory that
    comes fresh from the kernel takes longer than the copy.

    Args:
        parameters: Each is copied before the next one is asked for.
        tied: Further names of some parameters, each with the name under which it comes.
    """
    further: dict[str, list[str]] = {}
    for other, first in tied.items():
        further.setdefault(first, []).append(other)
    packer = _Packer(dtype, chunk_bytes, further)
    for name, parameter in parameters:
        size = parameter.numel() * dtype.itemsize
        if packer.names and packer.size + size > chunk_bytes:
            yield packer.close()
        if size >= chunk_bytes and _is_ready(parameter, dtype):
            data = parameter.detach().view(-1).view(torch.uint8)
            yield _chunk([name], [tuple(parameter.shape)], dtype, data, further)
        else:
            packer.add(name, parameter)
    if packer.names:
        yield packer.close()


def _is_ready(parameter: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a parameter's own memory is what a chunk of it alone would hold."""
    return parameter.dtype is dtype and parameter.is_contiguous() and not parameter.is_cuda


class _Packer:
    """Memory that one chunk after another is packed in.

    Args:
        capacity: Bytes that it takes, or one larger parameter. On a CPU only those that are written take
            memory.
    """

    def __init__(self, dtype: torch.dtype, capacity: int, further: Mapping[str, list[str]]) -> None:
        self.dtype = dtype
        self.capacity = capacity
        self.further = further
        self.names: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.data: torch.Tensor | None = None
        self.host: torch.Tensor | None = None
        """Page-locked, for chunks that come from a GPU: a copy to ordinary memory takes several times as
        long."""
        self.size = 0

    def add(self, name: str, parameter: torch.Tensor) -> None:
        end = self.size + parameter.numel() * self.dtype.itemsize
        if self.data is None or end > len(self.data):  # only the first of a chunk's parameters can be larger
            self.data = self.host = None
            self.data = torch.empty(max(end, self.capacity), dtype=torch.uint8, device=parameter.device)
        room = self.data[self.size : end].view(self.dtype)
        room.view(parameter.shape).copy_(parameter.detach())
        self.names.append(name)
        self.shapes.append(tuple(parameter.shape))
        self.size = end

    def close(self) -> WeightChunk:
        """The chunk that is packed; the next parameter begins another one in its place."""
        assert self.data is not None
        data = self._on_host(self.data[: self.size])
        chunk = _chunk(self.names, self.shapes, self.dtype, data, self.further)
        self.names, self.shapes, self.size = [], [], 0
        return chunk

    def _on_host(self, data: torch.Tensor) -> torch.Tensor:
        if not data.is_cuda:
            return data
        if self.host is None or len(self.host) < len(data):
            self.host = None
            self.host = torch.empty(len(data), dtype=torch.uint8, pin_memory=True)
        return self.host[: len(data)].copy_(data)


def _chunk(
    names: list[str],
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    data: torch.Tensor,
    further: Mapping[str, list[str]],
) -> WeightChunk:
    tied = {name: further[name] for name in names if name in further}
    return WeightChunk(names, shapes, str(dtype).removeprefix("torch."), data.numpy(), tied)
