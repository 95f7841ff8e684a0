"""vLLM weight-transfer plug-in that takes new weights from the Ray object store.

An engine maps the learner's `WeightChunk`s without a copy and passes each to this plug-in. It loads them
through vLLM's layer-wise reload, which also rebuilds what vLLM keeps in packed form. vLLM finds it by the
`vllm.general_plugins` entry point, so that tensor-parallel workers have it too.
"""

from dataclasses import dataclass

from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.compiled_code import let_vllm_load_compiled_code
from orchestrator.messages.weights import WeightChunk

BACKEND = "ray_object_store"


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """Empty, because the object store needs no rendezvous."""


class ObjectStoreWeightTransfer(WeightTransferEngine):
    """The worker's side: it loads chunks between two decode steps."""

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
    """Register the plug-in. vLLM calls this entry point in every process, possibly more than once."""
    let_vllm_load_compiled_code()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreWeightTransfer)
