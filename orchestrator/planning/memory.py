"""How much memory a run needs, from the model's config.json alone: reads no weights and starts nothing.

In: a configuration and a `ModelSize`. Out: a `MemoryPlan` in bytes. It leaves out activations, which grow
with `learning.tokens_per_micro_batch`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.cluster.machine import GIB
from orchestrator.config.training import LearningConfig, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.messages.requests import CPU_KV_CACHE_GIB

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSize:
    """The parts of a model's shape that decide its memory; tied weights count once."""

    model_type: str
    parameters: int
    largest_layer: int
    """Parameters of the largest single module. A ZeRO-3 rank holds it in full while it computes."""
    layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    """Rows of the embedding."""
    context: int | None
    """The positions that the model was trained for; None where its configuration does not say."""


@dataclass(frozen=True)
class LearnerMemory:
    """Weights, gradients and optimiser states of all ranks on one node."""

    per_rank: int
    """On the GPU, or in main memory where the ranks have no GPU."""
    host: int
    """In main memory, all ranks together: buffers and offloaded states."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, by pool."""

    learner: LearnerMemory
    reference_per_rank: int
    engine_weights: int
    """Of one tensor-parallel rank."""
    kv_cache: int | None
    """Of one tensor-parallel rank; None where vLLM takes the GPU memory that it finds free."""
    kv_bytes_per_token: int
    """Of one tensor-parallel rank."""
    in_transit: int
    """In the object store: the weights that the engines use and, during an update, the next version."""
    host_total: int
    """In main memory, all pools together."""

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that one engine's KV cache holds; None where its size is not known before the start."""
        return None if self.kv_cache is None else self.kv_cache // self.kv_bytes_per_token


def model_size(path: str) -> ModelSize:
    """The shape of a model folder or hub name, built without weights.

    Raises:
        ConfigError: The learner cannot train this model.
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
    """DeepSpeed's own estimate for ZeRO-3: all ranks on one node, the model loaded directly into shards.

    DeepSpeed counts 18 bytes a parameter, for 16-bit weights: 2 for the weights, 16 for float32 master
    weights, gradients and AdamW's two moments. float32 weights take 2 bytes more.
    """
    from actors.process_group import prepare_process

    with _environment_restored():
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
    """The memory that each pool of a run needs."""
    learning, rollout = config.learning, config.rollout
    engine_bytes = DTYPE_BYTES[config.engine_dtype]
    learner = learner_memory(size, learning)
    reference = (
        DTYPE_BYTES[learning.dtype] * size.parameters // learning.num_ranks if config.needs_reference else 0
    )
    engine_weights = engine_bytes * size.parameters // rollout.tensor_parallel
    kv_gib = rollout.kv_cache_gib or (CPU_KV_CACHE_GIB if rollout.gpus == 0 else None)
    kv_cache = None if kv_gib is None else int(kv_gib * GIB)
    # A key and a value; a rank holds at least one head.
    kv_bytes_per_token = (
        2 * size.layers * max(1, size.kv_heads // rollout.tensor_parallel) * size.head_dim * engine_bytes
    )
    in_transit = 2 * engine_bytes * size.parameters

    host = learner.host + in_transit
    if learning.gpus_per_rank == 0:
        host += learning.num_ranks * (learner.per_rank + reference)
    elif rollout.colocate:
        host += learning.num_ranks * learner.per_rank  # the learner leaves its GPUs during generation
    if rollout.gpus == 0:
        host += rollout.num_engines * rollout.tensor_parallel * (engine_weights + (kv_cache or 0))
    return MemoryPlan(learner, reference, engine_weights, kv_cache, kv_bytes_per_token, in_transit, host)


def machine_memory() -> int:
    """Bytes of this machine's main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu_memory() -> int | None:
    """Bytes of this machine's smallest GPU; None where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return min(
        torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())
    )


def memory_notes(config: RunConfig, plan: MemoryPlan, host: int, gpu: int | None) -> list[str]:
    """A note for each need beyond `host` bytes of main memory or beyond GPUs of `gpu` bytes, if any.

    An actor that reserves a fraction of a GPU may use that fraction of its memory.
    """
    notes = []
    if plan.host_total > host:
        notes.append(
            f"the pools need {plan.host_total / GIB:.1f} GiB of memory before activations, "
            f"and this machine has {host / GIB:.1f} GiB"
        )
    if gpu is None:
        return notes
    needs = (
        ("a learner rank", plan.learner.per_rank + plan.reference_per_rank, config.learning.gpus_per_rank),
        ("an engine's weights and KV cache", plan.engine_weights + (plan.kv_cache or 0), config.rollout.gpus),
    )
    for name, needed, share in needs:
        given = gpu * min(share, 1)
        if share and needed > given:
            notes.append(
                f"{name}: {needed / GIB:.1f} GiB, but it gets {given / GIB:.1f} GiB of this machine's "
                "smallest GPU"
            )
    return notes


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Undo changes to the environment, which actors started later, perhaps on GPUs, would inherit."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
