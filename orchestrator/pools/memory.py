"""How much memory a run needs at its peak, from the model's config.json alone: reads no weights.

In: a configuration and a `ModelSize`. Out: a `MemoryPlan` in bytes, each number with its cause. Libraries
and Ray have no formula: those constants are measured, and `python -m benchmarks.memory` measures them again
beside the whole plan. Memory is what only a process's end gives back: anonymous pages and the object store,
but no pages of files.
"""

from dataclasses import dataclass, replace

from orchestrator.cluster.machine import GIB
from orchestrator.config.learning import LearningConfig
from orchestrator.config.training import RunConfig
from orchestrator.data.model_files import load_model_config
from orchestrator.errors import ConfigError
from orchestrator.messages.requests import CPU_KV_CACHE_GIB
from orchestrator.pools.activations import Activations, activations

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MIB = 2**20

RANK_LIBRARIES = int(0.65 * GIB)
"""Of a learner rank: Python, torch, DeepSpeed, transformers and the tokenizer."""
ENGINE_LIBRARIES = int(0.68 * GIB)
"""Of an engine: the same with vLLM, and what its compiler keeps."""
PACKED_SHARE = 0.5
"""Part of the weights that a CPU engine keeps packed as well, the head apart: oneDNN packs some layers."""
VERIFIER_BYTES = int(0.13 * GIB)
"""A verification worker and its child, with math-verify."""
DRIVER_BYTES = int(0.52 * GIB)
"""`laser train` with MLflow, torch and the tokenizer."""
RAY_BYTES = int(0.33 * GIB)
"""Ray's own processes on one node, once the pools have started."""


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
    hidden: int
    """Width of the hidden states, and of the head's rows."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one learner rank: what it holds all the time, and what each phase adds to it."""

    libraries: int
    """0 on a GPU."""
    weights: int
    states: int
    """In float32: master weights, also beside float32 weights, AdamW's two moments, and gradients."""
    streamed: int
    """With `learning.stream`: gradients of further loss terms."""
    gathered: int
    """Buffers of collectives, and whole parameters where the rank's own shard is not the whole."""
    reference: int
    activations: int
    """Of one micro-batch, in the forward and backward pass."""
    head: int
    """Logits, log-probs and gradients of the head, beside the activations."""
    update: int
    """float32 copies of gradients, and AdamW's temporaries, for one part of the shards."""
    publish: int
    """Weights on their way to the object store."""
    export: int
    """Of rank 0: all weights in main memory, on their way to a folder. 0 where the rank is on a GPU."""
    host: int
    """In main memory beside a GPU: states that `learning.offload` keeps there."""

    @property
    def held(self) -> int:
        """Bytes while the engines generate."""
        states = self.states + self.streamed
        return self.libraries + self.weights + states + self.gathered + self.reference

    @property
    def learning(self) -> int:
        """Bytes at the peak of a training step."""
        return self.held + max(self.activations + self.head, self.update)

    @property
    def peak(self) -> int:
        return max(self.learning, self.held + self.publish, self.held + self.export)


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one tensor-parallel rank of an engine."""

    libraries: int
    """0 on a GPU."""
    weights: int
    kv_cache: int | None
    """None where vLLM takes the GPU memory that it finds free."""
    kv_bytes_per_token: int
    packed: int
    """On a CPU: copies of weights in the form that its matrix products take."""
    loading: int
    """Copies while new weights replace the old ones."""

    @property
    def held(self) -> int:
        return self.libraries + self.weights + self.packed + (self.kv_cache or 0)

    @property
    def peak(self) -> int:
        return self.held + self.loading

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the KV cache holds; None where its size is not known before the start."""
        return None if self.kv_cache is None else self.kv_cache // self.kv_bytes_per_token


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, by pool."""

    rank: RankMemory
    engine: EngineMemory
    published: int
    """One version of the weights in the object store."""
    host_phases: dict[str, int]
    """In main memory, all pools together, by phase of a step."""

    @property
    def host_total(self) -> int:
        """In main memory, all pools together, in the phase that needs most."""
        return max(self.host_phases.values())


def model_size(path: str) -> ModelSize:
    """The shape of a model folder or hub name, built without weights.

    Raises:
        ConfigError: The learner cannot train this model.
        OSError: There is no config.json.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from actors.zero3 import LogProbModel

    config = load_model_config(path)
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
        hidden=text.hidden_size,
    )


def plan_memory(config: RunConfig, size: ModelSize, kept: Activations | None = None) -> MemoryPlan:
    """The memory that each pool of a run needs.

    Args:
        kept: The activations of a micro-batch; worked out from the model's folder unless given.
    """
    learning = config.learning
    if kept is None:
        kept = activations(
            config.model.path,
            learning.dtype,
            learning.attention,
            learning.gradient_checkpointing,
            learning.tokens_per_micro_batch,
        )
    if learning.share_prefixes:
        kept = _with_padded_attention(kept, size, learning)
    rank = rank_memory(config, size, kept)
    engine = engine_memory(config, size)
    published = DTYPE_BYTES[config.engine_dtype] * size.parameters
    return MemoryPlan(rank, engine, published, _host_phases(config, rank, engine, published))


def _with_padded_attention(kept: Activations, size: ModelSize, learning: LearningConfig) -> Activations:
    """`kept`, and what attention keeps of padded rows: queries, keys, values and outputs of twice the budget,
    the most that `plan_group_micro_batches` allows."""
    places = 2 * learning.tokens_per_micro_batch
    extra = 4 * places * size.attention_heads * size.head_dim * DTYPE_BYTES[learning.dtype]
    if learning.gradient_checkpointing:
        return replace(kept, recomputed=kept.recomputed + extra)
    return replace(kept, layer=kept.layer + extra)


def rank_memory(config: RunConfig, size: ModelSize, kept: Activations) -> RankMemory:
    """The memory of one learner rank."""
    from actors import zero3

    learning = config.learning
    on_gpu, width, ranks = learning.gpus_per_rank > 0, DTYPE_BYTES[learning.dtype], learning.num_ranks
    shard = size.parameters // ranks
    states = 16 * shard if learning.offload == "none" else 0
    # AdamW takes the parts of a shard one after the other; a part is whole parameters.
    part = min(shard, max(zero3.SUB_GROUP_ELEMENTS, size.largest_layer // ranks))
    temporaries = 0 if on_gpu else 8  # AdamW's square roots and quotients; the GPU's fused AdamW has none
    bucket = width * (GPU_BUCKET_ELEMENTS if on_gpu else min(zero3.BUCKET_ELEMENTS, size.parameters))
    whole = 0 if ranks == 1 else width * min(size.parameters, LIVE_ELEMENTS)
    published = DTYPE_BYTES[config.engine_dtype]
    chunk = max(config.rollout.sync_chunk_mib * MIB, published * size.largest_layer)
    gathered = 0 if ranks == 1 else width * max(zero3.GATHERED_ELEMENTS, size.largest_layer)
    return RankMemory(
        libraries=0 if on_gpu else RANK_LIBRARIES,
        weights=0 if learning.offload == "all" else width * shard,
        states=states,
        streamed=4 * shard * streamed_copies(config),
        gathered=bucket + whole,
        reference=width * shard if config.needs_reference else 0,
        activations=kept.total,
        head=_head_bytes(size, learning),
        update=0 if learning.offload != "none" else (4 + temporaries) * part,
        publish=min(chunk, published * size.parameters) + gathered,
        export=0 if on_gpu else width * size.parameters,
        host=_offloaded(size, learning),
    )


def streamed_copies(config: RunConfig) -> int:
    """Gradients in float32 that `learning.stream` adds to a rank's own: of the self-reward of correct samples
    and of wrong ones."""
    return 2 if config.learning.stream and config.loss.alpha > 0 else 0


GPU_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default `reduce_bucket_size`; on a GPU all of it is reserved."""
LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's default `stage3_max_live_parameters`: whole parameters that a rank keeps at a time."""


def _head_bytes(size: ModelSize, learning: LearningConfig) -> int:
    """Largest memory of the head, in its backward pass: see `token_logprobs`."""
    from orchestrator.algorithm import token_logprobs as head

    width = DTYPE_BYTES[learning.dtype]
    tokens = min(learning.tokens_per_micro_batch, head.LogProbHead.chunk_tokens)
    logits = width * tokens * size.vocabulary
    weight = size.vocabulary * size.hidden
    slices = 2 * 4 * min(max(tokens * size.vocabulary, weight), head.SLICE_ELEMENTS)
    # Beside the weight's gradient in float32: the logits and slices of them, or the gradient as it returns.
    return 4 * weight + max(logits + slices, width * weight)


def _offloaded(size: ModelSize, learning: LearningConfig) -> int:
    """Of one rank's states in main memory, DeepSpeed's own estimate for ZeRO-3: 16 bytes a parameter, and 2
    for weights, half as much again for its buffers."""
    if learning.offload == "none":
        return 0
    return 3 * (18 if learning.offload == "all" else 16) * size.parameters // (2 * learning.num_ranks)


def engine_memory(config: RunConfig, size: ModelSize) -> EngineMemory:
    """The memory of one tensor-parallel rank of an engine."""
    rollout = config.rollout
    on_gpu, width = rollout.gpus > 0, DTYPE_BYTES[config.engine_dtype]
    kv_gib = rollout.kv_cache_gib or (None if on_gpu else CPU_KV_CACHE_GIB)
    return EngineMemory(
        libraries=0 if on_gpu else ENGINE_LIBRARIES,
        weights=width * size.parameters // rollout.tensor_parallel,
        kv_cache=None if kv_gib is None else int(kv_gib * GIB),
        # A key and a value; a rank holds at least one head.
        kv_bytes_per_token=2
        * size.layers
        * max(1, size.kv_heads // rollout.tensor_parallel)
        * size.head_dim
        * width,
        packed=0 if on_gpu else _packed_bytes(config, size),
        # The embedding or the head, once as it came and once packed, while both replace the old ones.
        loading=0 if on_gpu else 2 * width * size.largest_layer // rollout.tensor_parallel,
    )


def _packed_bytes(config: RunConfig, size: ModelSize) -> int:
    """What a CPU engine keeps beside the weights: the head's packed copy, and a share of the layers'."""
    width, parts = DTYPE_BYTES[config.engine_dtype], config.rollout.tensor_parallel
    head = width * size.vocabulary * size.hidden // parts
    return head + int(PACKED_SHARE * width * size.parameters / parts)


def _host_phases(config: RunConfig, rank: RankMemory, engine: EngineMemory, published: int) -> dict[str, int]:
    """Main memory of all pools together while engines generate, ranks learn, and weights are published."""
    learning, rollout = config.learning, config.rollout
    engines = 0 if rollout.gpus else rollout.num_engines * rollout.tensor_parallel
    ranks = 0 if learning.gpus_per_rank else learning.num_ranks
    always = (
        DRIVER_BYTES
        + RAY_BYTES
        + config.verification.num_workers * VERIFIER_BYTES
        + learning.num_ranks * rank.host
    )
    on_gpus = (RANK_LIBRARIES * learning.num_ranks if not ranks else 0) + (
        ENGINE_LIBRARIES * rollout.num_engines * rollout.tensor_parallel if not engines else 0
    )
    always += on_gpus
    exported = published * DTYPE_BYTES[learning.dtype] // DTYPE_BYTES[config.engine_dtype]
    waiting = learning.num_ranks * rank.held if not ranks and rollout.colocate else 0
    return {
        "generate": always + waiting + ranks * rank.held + engines * engine.held + published,
        "learn": always + ranks * rank.learning + engines * engine.held + published,
        "publish": always
        + waiting
        + ranks * rank.held
        + (rank.publish if ranks else 0)
        + engines * engine.peak
        + 2 * published,
        "save": always + waiting + ranks * rank.held + exported + engines * engine.held + published,
    }
