"""How much memory a run needs, from the model's config.json alone: no weights are read and nothing is started.

In: a configuration and a `ModelSize`. Out: a `MemoryPlan` in bytes. Activations come on top; they grow with
`learning.tokens_per_micro_batch`.
"""

import os
from dataclasses import dataclass

from orchestrator.config.training import LearningConfig, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.messages.requests import CPU_KV_CACHE_GIB

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30


@dataclass(frozen=True)
class ModelSize:
    """What a model's shape says about memory; tied weights count once."""

    model_type: str
    parameters: int
    largest_layer: int
    """Parameters of the largest single module, which a ZeRO-3 rank holds in full while it computes."""
    layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    """Rows of the embedding."""
    context: int | None
    """Positions the model was made for, where its configuration says."""


@dataclass(frozen=True)
class LearnerMemory:
    """Weights, gradients and optimiser states of all ranks on one node."""

    per_rank: int
    """On the GPU, or in the CPU's memory where the ranks have no GPU."""
    host: int
    """Beside that, in the CPU's memory: buffers, and what is offloaded."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, by pool. `kv_cache` is None where vLLM takes what it finds free on the GPU."""

    learner: LearnerMemory
    reference_per_rank: int
    engine_weights: int
    """Of one tensor-parallel rank."""
    kv_cache: int | None
    kv_bytes_per_token: int
    """Of one tensor-parallel rank."""
    in_transit: int
    """Weights in the object store: the engines' version and, while it is replaced, the next."""
    host_total: int
    """In the CPU's memory, over all pools."""

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that one engine's KV cache holds."""
        return None if self.kv_cache is None else self.kv_cache // self.kv_bytes_per_token


def model_size(path: str) -> ModelSize:
    """Shape of a model folder or hub name, built without weights.

    Raises:
        ConfigError: The model is none that the learner can train.
        OSError: There is no config.json.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from actors.zero3 import LogProbModel

    config = AutoConfig.from_pretrained(path)
    try:
        with torch.device("meta"):
            model = LogProbModel(AutoModelForCausalLM.from_config(config))
    except ValueError as error:
        raise ConfigError(
            f"model.path: transformers has no causal language model for {path}: {str(error).splitlines()[0]}"
        ) from error
    text = config.get_text_config()
    return ModelSize(
        model_type=config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        largest_layer=max(
            sum(parameter.numel() for parameter in module.parameters(recurse=False))
            for module in model.modules()
        ),
        layers=text.num_hidden_layers,
        attention_heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocabulary=model.model.get_input_embeddings().weight.shape[0],
        context=getattr(text, "max_position_embeddings", None),
    )


def learner_memory(size: ModelSize, learning: LearningConfig) -> LearnerMemory:
    """DeepSpeed's own estimate for ZeRO-3, all ranks on one node, the model loaded straight into shards.

    Its 18 bytes a parameter are for 16-bit weights: 2 for them, 16 for float32 master weights, gradients and AdamW's two moments.
    float32 weights take 2 bytes more.
    """
    from actors.zero3 import prepare_process

    prepare_process(on_gpu=False)
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    host, per_rank, _ = estimate_zero3_model_states_mem_needs(
        size.parameters,
        size.largest_layer,
        num_gpus_per_node=learning.num_ranks,
        num_nodes=1,
        cpu_offload=learning.offload != "none",
        cpu_offload_params=learning.offload == "all",
        zero_init=True,
    )
    wider = 2 if learning.dtype == "float32" else 0
    if learning.offload == "all":
        host += wider * size.parameters
    else:
        per_rank += wider * size.parameters // learning.num_ranks
    return LearnerMemory(per_rank + 2 * wider * size.largest_layer, host)


def plan_memory(config: RunConfig, size: ModelSize) -> MemoryPlan:
    """What each pool of a run holds."""
    learning, rollout = config.learning, config.rollout
    engine_bytes = DTYPE_BYTES[config.engine_dtype]
    learner = learner_memory(size, learning)
    reference = (
        DTYPE_BYTES[learning.dtype] * size.parameters // learning.num_ranks if config.needs_reference else 0
    )
    engine_weights = engine_bytes * size.parameters // rollout.tensor_parallel
    kv_gib = rollout.kv_cache_gib or (CPU_KV_CACHE_GIB if rollout.gpus == 0 else None)
    kv_cache = None if kv_gib is None else int(kv_gib * GIB)
    # Key and value; a rank holds one head at least.
    kv_bytes_per_token = (
        2 * size.layers * max(1, size.kv_heads // rollout.tensor_parallel) * size.head_dim * engine_bytes
    )
    in_transit = 2 * engine_bytes * size.parameters

    host = learner.host + in_transit
    if learning.gpus_per_rank == 0:
        host += learning.num_ranks * (learner.per_rank + reference)
    elif rollout.colocate:
        host += learning.num_ranks * learner.per_rank  # while it is the engines' turn
    if rollout.gpus == 0:
        host += rollout.num_engines * rollout.tensor_parallel * (engine_weights + (kv_cache or 0))
    return MemoryPlan(learner, reference, engine_weights, kv_cache, kv_bytes_per_token, in_transit, host)


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu_memory() -> int | None:
    """Bytes of this machine's smallest GPU, or None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return min(
        torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())
    )


def memory_notes(config: RunConfig, plan: MemoryPlan, host: int, gpu: int | None) -> list[str]:
    """What does not fit into `host` bytes of memory, or into GPUs of `gpu` bytes; a GPU that is shared counts by its share."""
    notes = []
    if plan.host_total > host:
        notes.append(
            f"the pools need {plan.host_total / GIB:.1f} GiB of memory before activations, and this machine has {host / GIB:.1f}"
        )
    if gpu is None:
        return notes
    needs = (
        ("a learner rank", plan.learner.per_rank + plan.reference_per_rank, config.learning.gpus_per_rank),
        ("an engine's weights and KV cache", plan.engine_weights + (plan.kv_cache or 0), config.rollout.gpus),
    )
    for name, needed, share in needs:
        if share and needed > gpu * min(share, 1):
            notes.append(
                f"{name}: {needed / GIB:.1f} GiB, and a GPU of this machine gives it {gpu * min(share, 1) / GIB:.1f}"
            )
    return notes
