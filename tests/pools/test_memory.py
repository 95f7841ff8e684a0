"""The memory plan against numbers worked out by hand, and the shapes that it reads from model folders."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, Qwen2Config

from experiments.quickstart.task import write_untrained
from orchestrator.cluster.machine import GIB
from orchestrator.pools import memory
from orchestrator.pools.activations import Activations, activations
from orchestrator.pools.memory import ModelSize, engine_memory, model_size, plan_memory, rank_memory
from tests.settings import configure

SIZE = ModelSize(
    "made-up",
    parameters=1000,
    largest_layer=200,
    layers=2,
    attention_heads=4,
    kv_heads=2,
    head_dim=8,
    vocabulary=50,
    context=64,
    hidden=4,
)
KEPT = Activations(outside=10, layer=20, recomputed=5, layers=2)
LENGTHS = {"max_prompt_tokens": 20, "max_response_tokens": 30}


def run_config(**sections):
    sections["rollout"] = LENGTHS | sections.get("rollout", {})
    sections["learning"] = {"tokens_per_micro_batch": 100} | sections.get("learning", {})
    return configure(**sections)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "untrained"
    write_untrained(folder, seed=0)
    return folder


def test_a_rank_on_cpu():
    rank = rank_memory(run_config(learning={"dtype": "bfloat16"}), SIZE, KEPT)
    assert rank.weights == 2 * 1000
    assert rank.states == (4 + 4 + 4 + 4) * 1000  # masters, two moments, gradients
    assert rank.gathered == 2 * 1000  # the bucket never holds more than all gradients
    assert rank.activations == 10 + 2 * 20 + 5
    # Logits of 100 tokens; the weight's gradient of 50 x 4 in float32; two float32 slices of 100 x 50.
    assert rank.head == 2 * 100 * 50 + 4 * 200 + 2 * 4 * 100 * 50
    assert rank.update == (4 + 8) * 1000  # one part: gradients in float32, and AdamW's two temporaries
    assert rank.reference == 0
    assert rank.publish == 2 * 1000  # all weights are less than a chunk
    assert rank.peak == rank.learning
    assert rank.learning == memory.RANK_LIBRARIES + 20_000 + 55 + 50_800


def test_deepspeed_keeps_masters_of_float32_weights_too():
    rank = rank_memory(run_config(learning={"dtype": "float32"}), SIZE, KEPT)
    assert (rank.weights, rank.states) == (4000, 16_000)


def test_streaming_keeps_the_gradients_of_both_classes_apart():
    streaming = {"stream": True, "num_ranks": 2}
    rank = rank_memory(run_config(learning=streaming), SIZE, KEPT)
    without = rank_memory(run_config(learning={"num_ranks": 2}), SIZE, KEPT)
    assert rank.streamed == 2 * 4 * 500
    assert rank.held - without.held == rank.streamed
    plain = run_config(learning=streaming, loss={"alpha": 0.0, "tau": 0.0})
    assert rank_memory(plain, SIZE, KEPT).streamed == 0, "the policy's gradient has DeepSpeed's own buffer"


def test_ranks_share_the_states_and_gather_the_weights():
    config = run_config(learning={"dtype": "bfloat16", "num_ranks": 4}, loss={"kl_coef": 0.1})
    rank = rank_memory(config, SIZE, KEPT)
    assert (rank.weights, rank.states, rank.reference) == (500, 4000, 500)
    assert rank.gathered == 2000 + 2000  # the bucket, and all parameters while they are used
    assert rank.update == 12 * 250


def test_the_update_goes_part_by_part_and_a_part_holds_the_largest_parameter():
    large = replace(SIZE, parameters=300_000_000, largest_layer=136_000_000)
    assert rank_memory(run_config(), large, KEPT).update == 12 * 136_000_000
    small_layers = replace(large, largest_layer=1000)
    assert rank_memory(run_config(), small_layers, KEPT).update == 12 * 50_000_000


def test_the_logits_of_a_chunk_and_not_of_the_micro_batch():
    config = run_config(learning={"tokens_per_micro_batch": 10_000})
    wide = replace(SIZE, vocabulary=200_000)
    # 2,048 tokens; float32 slices of 2**25 logits.
    expected = 4 * 2048 * 200_000 + 4 * 800_000 + 2 * 4 * 2**25
    assert rank_memory(config, wide, KEPT).head == expected


def test_a_rank_on_a_gpu_has_no_libraries_there_and_its_bucket_at_once():
    config = run_config(learning={"dtype": "bfloat16", "gpus_per_rank": 1}, rollout={"gpus": 1})
    rank = rank_memory(config, SIZE, KEPT)
    assert rank.libraries == 0
    assert rank.gathered == 2 * 500_000_000
    assert rank.update == 4 * 1000  # the fused AdamW has no temporaries


@pytest.mark.parametrize(
    ("offload", "weights", "host"),
    [("optimizer", 500, 24_000 // 4), ("all", 0, 27_000 // 4)],
)
def test_offloaded_states_are_in_main_memory(offload, weights, host):
    learning = {"dtype": "bfloat16", "gpus_per_rank": 1, "num_ranks": 4, "offload": offload}
    rank = rank_memory(run_config(learning=learning, rollout={"gpus": 1}), SIZE, KEPT)
    assert (rank.weights, rank.states, rank.update, rank.host) == (weights, 0, 0, host)


def test_an_engines_kv_cache():
    on_cpu = engine_memory(run_config(rollout={"kv_cache_gib": 1.0}), SIZE)
    assert on_cpu.weights == 4 * 1000
    assert on_cpu.packed == 4 * 50 * 4 + int(memory.PACKED_SHARE * 4 * 1000)
    assert on_cpu.loading == 2 * 4 * 200
    assert on_cpu.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4  # key and value, layers, heads, width, float32
    assert on_cpu.kv_tokens == GIB // 256
    config = run_config(learning={"dtype": "bfloat16"}, rollout={"gpus": 1, "tensor_parallel": 2})
    on_gpu = engine_memory(config, SIZE)
    assert on_gpu.kv_bytes_per_token == 2 * 2 * 1 * 8 * 2
    assert (on_gpu.weights, on_gpu.packed, on_gpu.loading) == (1000, 0, 0)
    assert (on_gpu.kv_cache, on_gpu.kv_tokens) == (None, None)


def test_all_pools_by_phase():
    config = run_config(rollout={"num_engines": 2}, learning={"num_ranks": 2})
    plan = plan_memory(config, SIZE, KEPT)
    always = memory.DRIVER_BYTES + memory.RAY_BYTES + memory.VERIFIER_BYTES
    rank, engine = plan.rank, plan.engine
    assert plan.published == 4000
    assert rank.export == 4000
    assert plan.host_phases == {
        "generate": always + 2 * rank.held + 2 * engine.held + 4000,
        "learn": always + 2 * rank.learning + 2 * engine.held + 4000,
        "publish": always + 2 * rank.held + rank.publish + 2 * engine.peak + 8000,
        "save": always + 2 * rank.held + 4000 + 2 * engine.held + 4000,
    }
    assert plan.host_total == max(plan.host_phases.values())


def test_a_colocated_learner_is_in_main_memory_while_it_waits():
    learning = {"num_ranks": 4, "gpus_per_rank": 1, "dtype": "bfloat16"}
    apart = plan_memory(run_config(learning=learning, rollout={"gpus": 1}), SIZE, KEPT)
    turns = plan_memory(run_config(learning=learning, rollout={"gpus": 1, "colocate": True}), SIZE, KEPT)
    assert turns.host_phases["generate"] - apart.host_phases["generate"] == 4 * apart.rank.held
    assert turns.host_phases["learn"] == apart.host_phases["learn"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_prefixes_keep_padded_rows_of_twice_the_budget(checkpointing):
    learning = {"tokens_per_micro_batch": 100, "gradient_checkpointing": checkpointing}
    apart = plan_memory(run_config(learning=learning), SIZE, KEPT)
    shared = plan_memory(run_config(learning=learning | {"share_prefixes": True}), SIZE, KEPT)
    # Queries, keys, values and outputs in float32, of each layer or of the one that is computed again.
    a_layer = 4 * 200 * SIZE.attention_heads * SIZE.head_dim * 4
    layers = 1 if checkpointing else KEPT.layers
    assert shared.rank.activations - apart.rank.activations == layers * a_layer


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_a_real_forward_pass_saves(untrained, checkpointing):
    """On real tensors, with all four layers; checkpointing saves each layer's input only."""
    planned = activations(str(untrained), "float32", "sdpa", False, tokens=128)
    config = Qwen2Config.from_pretrained(untrained)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        planned = activations(str(untrained), "float32", "sdpa", True, tokens=128)
        planned = replace(planned, recomputed=0)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=torch.zeros(2, 64, dtype=torch.long), use_cache=False)
    real = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert planned.total == pytest.approx(real, rel=0.08)


def test_a_model_that_does_not_run_on_fake_tensors_gets_the_usual_estimate(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    GptOssConfig(**sizes, head_dim=8, vocab_size=64, num_local_experts=4).save_pretrained(tmp_path)
    # transformers refuses sdpa for it. 17 hidden states of 32 x 2 bytes for each of 10 tokens.
    kept = activations(str(tmp_path), "bfloat16", "sdpa", False, tokens=10)
    assert kept == Activations(outside=0, layer=10 * 17 * 32 * 2, recomputed=0, layers=4)


def test_model_size_reads_the_shape_without_weights(untrained, tmp_path):
    shutil.copy(untrained / "config.json", tmp_path)
    size = model_size(str(tmp_path))
    # 260 tokens: 256 bytes and 4 special ones. Attention of a layer: q and o 128 x 128, k and v 128 x 64,
    # biases of q, k and v; its MLP 3 x 128 x 384, two norms; a last norm; embedding and head are not tied.
    layer = 2 * 128 * 128 + 2 * 128 * 64 + (128 + 64 + 64) + 3 * 128 * 384 + 2 * 128
    assert size.parameters == 4 * layer + 128 + 2 * 260 * 128
    assert size.largest_layer == 128 * 384
    assert (
        size.layers,
        size.attention_heads,
        size.kv_heads,
        size.head_dim,
        size.vocabulary,
        size.context,
    ) == (4, 4, 2, 32, 260, 512)


def test_model_size_counts_tied_weights_once(untrained, tmp_path):
    config = json.loads((untrained / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert model_size(str(untrained)).parameters - model_size(str(tmp_path)).parameters == 260 * 128
