"""vLLM weight-transfer plug-in that takes new weights from the Ray object store.

The learner puts bounded chunks into the store (`WeightChunk`: parameter names, shapes and one flat byte array). An engine maps
them without a copy and hands each to this plug-in, which loads it through vLLM's layer-wise reload: that also rebuilds what vLLM
keeps in packed form. Registered through the `vllm.general_plugins` entry point, so tensor-parallel workers have it too.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "ray_object_store"


@dataclass
class WeightChunk(WeightTransferUpdateInfo):
    """Some parameters in checkpoint format, back to back in one byte array."""

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


def pack_chunks(parameters: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, chunk_bytes: int) -> Iterator[WeightChunk]:
    """Cast parameters to `dtype` and pack them into chunks of at most `chunk_bytes` (a larger one travels alone)."""
    names: list[str] = []
    pieces: list[torch.Tensor] = []
    size = 0

    def chunk() -> WeightChunk:
        data = torch.cat([piece.reshape(-1) for piece in pieces]).view(torch.uint8).numpy()
        return WeightChunk(list(names), [tuple(piece.shape) for piece in pieces], str(dtype).removeprefix("torch."), data)

    for name, parameter in parameters:
        piece = parameter.detach().to("cpu", dtype)
        if pieces and size + piece.nbytes > chunk_bytes:
            yield chunk()
            names, pieces, size = [], [], 0
        names.append(name)
        pieces.append(piece)
        size += piece.nbytes
    if pieces:
        yield chunk()


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """The object store needs no rendezvous."""


class ObjectStoreWeightTransfer(WeightTransferEngine[NoInitInfo, WeightChunk]):
    """Worker side: loads chunks between two decode steps."""

    init_info_cls = NoInitInfo
    update_info_cls = WeightChunk

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: WeightChunk) -> None:
        self.model.load_weights(update_info.tensors())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


def register() -> None:
    """Entry point: vLLM calls this in every process, possibly more than once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreWeightTransfer)
