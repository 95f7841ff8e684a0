"""Measures of the learner that need a GPU: speed, peak memory and bfloat16 precision, each beside a baseline.

    python benchmarks/gpu_learner.py [--json FILE]

Head: `token_logprobs` at the shape of a 7B model's head, against the two usual ways, which hold all logits.
Precision: loss, log-probs and gradients of a small model under ZeRO-3 on the GPU, against plain transformers
in float32 on the CPU. Step: whole optimiser steps of random models of Qwen2.5's 1.5B and 7B shapes, on one
ZeRO-3 rank. The real `LearnerRank` does the work, without the object store. Each part runs in its own
process, so that its peak memory is measured alone; a part that fails is reported, and the others run. Needs
one GPU, with 140 GB for the 7B step, and 16 GB of disk.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from actors import process_group, zero3
from actors.learning import LearnerRank
from actors.rows import rollout_rows
from orchestrator.algorithm.advantages import group_advantages
from orchestrator.algorithm.loss import LossInputs, LossSettings, laser_loss
from orchestrator.algorithm.micro_batches import MicroBatchPlan, padding_share, plan_micro_batches
from orchestrator.algorithm.self_reward import class_weights
from orchestrator.algorithm.token_logprobs import LogProbHead, token_logprobs
from orchestrator.messages.batches import LearnerSettings, MiniBatch, PolicySettings, TrainBatch
from orchestrator.messages.trajectories import Trajectories
from orchestrator.messages.weights import pack_chunks

GIB = 2**30
CHUNK = 2**28
QWEN_7B_HEAD = {"hidden": 3584, "vocab": 152064}
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    # Wider than usual, so that a random model's distributions are not all flat.
    "initializer_range": 0.05,
}
SHAPES = {
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
PAD_TOKEN, EOS_TOKEN, Z_TOKEN = 0, 1, 2
C_REF = -11.0
ALPHA = 0.1
LOSS = LossSettings(alpha=ALPHA, beta_v=0.1, kl_coef=0.0, kl_estimator="k3", clip_low=0.2, clip_high=0.2)


class LocalRank(LearnerRank):
    """A rank whose batch holds the trajectories themselves instead of references to the object store."""

    @staticmethod
    def _fetch_groups(refs: Sequence[Any], numbers: Sequence[int]) -> dict[int, Trajectories]:
        return {number: refs[number] for number in numbers}


def machine() -> dict[str, Any]:
    """Names and versions, and the two ceilings: a large bfloat16 matrix product and a large copy."""
    import deepspeed
    import transformers

    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    product = statistics.median(_milliseconds(lambda: left @ right) for _ in range(20))
    copy = statistics.median(_milliseconds(lambda: target.copy_(source)) for _ in range(20))
    return {
        "gpu": torch.cuda.get_device_name(),
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / GIB, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "deepspeed": deepspeed.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "matmul_tflops": round(2 * 8192**3 / product / 1e9),
        "copy_tb_per_s": round(2 * source.nbytes / copy / 1e9, 2),
    }


def head(tokens: int, repeats: int = 9) -> list[dict[str, Any]]:
    """Forward and backward pass of each way to get log-probs: median time, peak memory and error.

    Memory counts beyond the inputs.

    The error is against float64 on 1024 of the rows: the largest one of the log-probs, and
    ||difference|| / ||gradient||.
    """
    inputs = _head_inputs(tokens)
    few = _head_inputs(1024)
    exact = _differentiated(_all_logits, few[0].double(), few[1].double(), few[2])
    ways: dict[str, Callable[..., Tensor]] = {
        f"token_logprobs, {chunk} tokens a chunk": lambda *args, chunk=chunk: token_logprobs(
            args[0], args[1], None, args[2], chunk
        )[0]
        for chunk in (512, 1024, 2048, 4096, 8192)
    }
    ways |= {"log_softmax of all logits": _all_logits, "cross_entropy of all logits": _cross_entropy}
    times: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    for repeat in range(repeats + 2):
        for name, way in ways.items():
            baseline = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            elapsed = _milliseconds(lambda way=way: _differentiated(way, *inputs))
            peaks[name] = (torch.cuda.max_memory_allocated() - baseline) / GIB
            if repeat >= 2:
                times[name].append(elapsed)
    rows = []
    for name, way in ways.items():
        found = _differentiated(way, *few)
        rows.append(
            {
                "tokens": tokens,
                "way": name + (" (default)" if f" {LogProbHead.chunk_tokens} " in name else ""),
                "ms": round(statistics.median(times[name]), 1),
                "peak_gib": round(peaks[name], 2),
                "logprob_error": _rounded((found[0].double() - exact[0]).abs().max()),
                "hidden_grad_error": _rounded(_distance(found[1], exact[1])),
                "weight_grad_error": _rounded(_distance(found[2], exact[2])),
            }
        )
    return rows


def precision(dtype: str, accumulate_in: str) -> list[dict[str, Any]]:
    """A small model's loss, log-probs and gradients on the GPU, against the CPU and one micro-batch.

    Plain transformers in the same precision on the GPU shows how much of the error comes from the precision.
    """
    groups = random_groups(8, 8, prompt=(8, 1500), response=(8, 120), vocab=SMALL["vocab_size"])
    with tempfile.TemporaryDirectory() as folder:
        write_model(SMALL, folder)
        expected = _plain(folder, groups, "cpu", torch.float32)
        plain = _plain(folder, groups, "cuda", getattr(torch, dtype))
        rank = start_rank(folder, dtype, False, {"data_types": {"grad_accum_dtype": accumulate_in}})
    # As the engine's log-probs, so that the step itself measures how far its own are from them.
    groups = _with_logprobs(groups, expected)
    samples = sum(len(group) for group in groups)
    finished = torch.from_numpy(np.concatenate([group.finished for group in groups]))
    difference = (plain.logprobs - expected.logprobs).abs()
    rows = [
        {
            "way": f"transformers, {dtype}",
            "loss_error": _rounded(abs(plain.loss - expected.loss)),
            "logprob_error_mean": _rounded(difference.mean()),
            "logprob_error_max": _rounded(difference.max()),
            "score_error_max": _rounded(
                LOSS.beta_v * (plain.z_logprobs - expected.z_logprobs)[finished].abs().max()
            ),
            "grad_error": _rounded(_distance_of_all(plain.gradients, expected.gradients)),
        }
    ]
    first = None
    for count in (1, 4, 16, 64):
        sums, gradients = rank.gradients(
            train_batch(groups, [[list(range(start, samples, count)) for start in range(count)]])
        )
        first = first or (sums, gradients)
        rows.append(
            {
                "way": f"LearnerRank, {dtype}, gradients summed in {accumulate_in}, {count} micro-batches",
                "loss_error": _rounded(abs(sums.total_loss - expected.loss)),
                "logprob_error_mean": _rounded(sums.mismatch_abs / sums.tokens),
                "logprob_error_max": _rounded(sums.mismatch_max),
                "score_error_max": _rounded(LOSS.beta_v * sums.z_mismatch_max),
                "grad_error": _rounded(_distance_of_all(gradients, expected.gradients)),
                "loss_change_from_1": _rounded(abs(sums.total_loss - first[0].total_loss)),
                "grad_change_from_1": _rounded(_distance_of_all(gradients, first[1])),
            }
        )
    return rows


def step(
    shape: str,
    gradient_checkpointing: bool,
    tokens_per_micro_batch: int,
    samples: int,
    response: tuple[int, int],
    steps: int = 4,
) -> dict[str, Any]:
    """Whole optimiser steps on samples of 512 prompt tokens; the first step is not counted.

    Args:
        response: Smallest and largest number of response tokens.
    """
    groups = random_groups(
        samples // 8, 8, prompt=(512, 512), response=response, vocab=SHAPES[shape]["vocab_size"]
    )
    lengths = [len(group.prompt_ids) + int(length) for group in groups for length in group.lengths]
    plan = plan_micro_batches(lengths, 1, tokens_per_micro_batch)
    batch = train_batch(groups, plan)
    with tempfile.TemporaryDirectory() as folder:
        write_model(SHAPES[shape], folder)
        started = time.perf_counter()
        rank = start_rank(folder, "bfloat16", gradient_checkpointing, {})
        setup_s = time.perf_counter() - started
    setup_peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        torch.cuda.synchronize()
        started = time.perf_counter()
        sums = rank.step(batch)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times[1:])
    parameters = zero3.parameter_count(rank.learner.model)
    flops = _model_flops(SHAPES[shape], parameters, sum(lengths), sums.tokens + len(lengths))
    peak = torch.cuda.max_memory_allocated() / GIB
    packed = []
    for _ in range(2):
        started = time.perf_counter()
        packed.append(
            sum(
                chunk.data.nbytes
                for chunk in pack_chunks(
                    zero3.gathered_parameters(rank.learner.model, is_sender=True), torch.bfloat16, CHUNK
                )
            )
        )
        pack_s = time.perf_counter() - started
    return {
        "shape": shape,
        "parameters": parameters,
        "gradient_checkpointing": gradient_checkpointing,
        "response_tokens": response,
        "tokens_per_micro_batch": tokens_per_micro_batch,
        "micro_batches": len(plan[0]),
        "padding_share": round(padding_share(plan, lengths), 3),
        "tokens": sum(lengths),
        "step_s": round(seconds, 3),
        "tokens_per_s": round(sum(lengths) / seconds),
        "model_tflops": round(flops / seconds / 1e12),
        "peak_gib": round(peak, 1),
        "setup_peak_gib": round(setup_peak, 1),
        "setup_s": round(setup_s, 1),
        "pack_weights_s": round(pack_s, 2),
        "packed_gib": round(packed[-1] / GIB, 2),
    }


def random_groups(
    groups: int, samples: int, prompt: tuple[int, int], response: tuple[int, int], vocab: int
) -> list[Trajectories]:
    """Groups of random tokens, lengths uniform between the bounds; one sample in eight is unfinished."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(groups):
        lengths = rng.integers(response[0], response[1], samples, endpoint=True)
        finished = np.arange(samples) % 8 != 7
        made.append(
            Trajectories(
                prompt_ids=rng.integers(
                    Z_TOKEN + 1, vocab, rng.integers(*prompt, endpoint=True), dtype=np.int32
                ),
                response_ids=rng.integers(Z_TOKEN + 1, vocab, lengths.sum(), dtype=np.int32),
                logprobs=np.zeros(lengths.sum(), np.float32),
                lengths=lengths.astype(np.int32),
                finished=finished,
                z_logprobs=np.where(finished, C_REF, np.nan).astype(np.float32),
                versions=np.zeros(lengths.sum(), np.int32),
            )
        )
    return made


def train_batch(groups: list[Trajectories], plan: MicroBatchPlan) -> TrainBatch:
    """One mini-batch with GRPO advantages of random rewards."""
    samples = sum(len(group) for group in groups)
    rewards = torch.from_numpy(np.random.default_rng(1).integers(0, 2, samples).astype(np.float32))
    finished = torch.from_numpy(np.concatenate([group.finished for group in groups]))
    group_of_sample = torch.arange(samples) // len(groups[0])
    return TrainBatch(
        step=1,
        groups=groups,
        samples_per_group=len(groups[0]),
        advantages=group_advantages(rewards, group_of_sample).numpy().astype(np.float32),
        rewards=rewards.numpy(),
        class_weights=class_weights(rewards, finished).numpy().astype(np.float32),
        c_ref=np.full(samples, C_REF, np.float32),
        mini_batches=[
            MiniBatch(plan, sum(int(group.lengths.sum()) for group in groups), int(finished.sum()))
        ],
        alpha=ALPHA,
    )


def write_model(shape: dict[str, Any], folder: str) -> None:
    """A Hugging Face folder with random bfloat16 weights and a tokenizer that knows padding and EOS only."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({"<pad>": PAD_TOKEN, "<eos>": EOS_TOKEN}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder
    )
    del model
    gc.collect()
    torch.cuda.empty_cache()


def start_rank(folder: str, dtype: str, gradient_checkpointing: bool, deepspeed: dict[str, Any]) -> LocalRank:
    """The only rank, with the optimiser settings that a run has by default."""
    settings = LearnerSettings(
        policy=PolicySettings(
            model_path=folder,
            on_gpu=True,
            threads=1,
            dtype=dtype,
            lr=1e-6,
            betas=(0.9, 0.999),
            weight_decay=0.01,
            grad_clip=1.0,
            gradient_checkpointing=gradient_checkpointing,
            deepspeed=deepspeed,
        ),
        num_ranks=1,
        seed=0,
        warmup_steps=0,
        loss=LOSS,
        z_token=Z_TOKEN,
        needs_reference=False,
        run_name="gpu-learner",
        remote=None,
    )
    rank = LocalRank(settings, rank=0)
    rank.store = process_group.open_store("127.0.0.1")
    rank.setup("127.0.0.1", rank.store.port)
    return rank


@dataclass(frozen=True)
class Plain:
    """What plain transformers gives for a batch. Log-probs lie sample after sample."""

    loss: float
    logprobs: Tensor
    z_logprobs: Tensor
    gradients: dict[str, Tensor]


def _plain(folder: str, groups: list[Trajectories], device: str, dtype: torch.dtype) -> Plain:
    """The LaSeR loss with an attention mask, all logits and autograd, on results kept in CPU memory."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    rows = rollout_rows(
        [group.sample(index) for group in groups for index in range(len(group))],
        Z_TOKEN,
        PAD_TOKEN,
        torch.device(device),
    )
    # Padding is its own mask: random tokens are never PAD_TOKEN.
    logits = model(input_ids=rows.input_ids, attention_mask=(rows.input_ids != PAD_TOKEN).long()).logits[
        rows.read
    ]
    logprobs = logits.float().log_softmax(-1).gather(1, rows.targets[:, None]).squeeze(1)
    batch = train_batch(groups, [])
    inputs = LossInputs(
        logprobs=logprobs[rows.is_token],
        advantages=torch.from_numpy(batch.advantages).to(device)[rows.sample],
        total_tokens=batch.mini_batches[0].total_tokens,
        total_finished=batch.mini_batches[0].total_finished,
        z_logprobs=logprobs[~rows.is_token],
        c_ref=C_REF,
        rewards=torch.from_numpy(batch.rewards).to(device),
        weights=torch.from_numpy(batch.class_weights).to(device),
    )
    loss = laser_loss(inputs, LOSS).total
    loss.backward()
    gradients = {
        name: parameter.grad.float().cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    on_cpu = logprobs.detach().cpu()
    is_token = rows.is_token.cpu()
    return Plain(loss.item(), on_cpu[is_token], on_cpu[~is_token], gradients)


def _with_logprobs(groups: list[Trajectories], plain: Plain) -> list[Trajectories]:
    by_group = zip(
        groups,
        plain.logprobs.split([int(group.lengths.sum()) for group in groups]),
        plain.z_logprobs.split([len(group) for group in groups]),
        strict=True,
    )
    return [
        replace(
            group,
            logprobs=tokens.numpy(),
            z_logprobs=np.where(group.finished, z.numpy(), np.nan).astype(np.float32),
        )
        for group, tokens, z in by_group
    ]


def _model_flops(shape: dict[str, Any], parameters: int, tokens: int, read: int) -> int:
    """6 for each parameter and token, for the head at the read positions only.

    Neither attention's own products nor recomputation count.
    """
    head_parameters = shape["vocab_size"] * shape["hidden_size"]
    body = parameters - head_parameters * (1 if shape["tie_word_embeddings"] else 2)
    return 6 * (body * tokens + head_parameters * read)


def _head_inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight, and targets drawn from them; the logits' standard deviation is 3."""
    generator = torch.Generator("cuda").manual_seed(0)
    hidden_size, vocab = QWEN_7B_HEAD["hidden"], QWEN_7B_HEAD["vocab"]
    weight = (
        torch.randn(vocab, hidden_size, device="cuda", generator=generator) * 3 / hidden_size**0.5
    ).bfloat16()
    hidden = torch.randn(tokens, hidden_size, device="cuda", generator=generator).bfloat16()
    targets = [
        linear(part, weight).float().softmax(-1).multinomial(1, generator=generator)
        for part in hidden.split(1024)
    ]
    return hidden, weight, torch.cat(targets).squeeze(1)


def _all_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = linear(hidden, weight)
    return (
        logits.to(torch.promote_types(logits.dtype, torch.float32))
        .log_softmax(-1)
        .gather(1, targets[:, None])
        .squeeze(1)
    )


def _cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(linear(hidden, weight).float(), targets, reduction="none")


def _differentiated(
    way: Callable[..., Tensor], hidden: Tensor, weight: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, and gradients of their sum, weighted from -1 to 2 as by advantages."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logprobs = way(hidden, weight, targets)
    (logprobs * torch.linspace(-1, 2, len(targets), device="cuda", dtype=logprobs.dtype)).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return logprobs.detach(), hidden.grad, weight.grad


def _milliseconds(work: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _distance_of_all(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """`_distance` of all parameters' gradients as one vector."""
    found_flat, expected_flat = (
        torch.cat([torch.as_tensor(gradients[name]).flatten() for name in sorted(expected)])
        for gradients in (found, expected)
    )
    return _distance(found_flat, expected_flat)


def _rounded(value: float | Tensor) -> float:
    return float(f"{float(value):.2e}")


SHORT, LONG = (512, 1536), (6000, 7680)
PARTS: dict[str, list[tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    "machine": [(machine, ())],
    "head": [(head, (8192,)), (head, (16384,))],
    "precision": [
        (precision, ("float32", "fp32")),
        (precision, ("bfloat16", "bf16")),
        (precision, ("bfloat16", "fp32")),
    ],
    "step": [
        (step, ("1.5B", False, 16384, 32, SHORT)),
        (step, ("1.5B", True, 16384, 32, SHORT)),
        (step, ("1.5B", True, 16384, 8, LONG)),
        (step, ("7B", True, 8192, 32, SHORT)),
        (step, ("7B", True, 16384, 32, SHORT)),
        (step, ("7B", True, 16384, 8, LONG)),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    file = parser.parse_args().json
    results: dict[str, list[Any]] = {}
    for part, cases in PARTS.items():
        for function, arguments in cases:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                future = process.submit(function, *arguments)
                error = future.exception()
            found = (
                {"case": arguments, "failed": f"{type(error).__name__}: {error}"}
                if error
                else future.result()
            )
            rows = found if isinstance(found, list) else [found]
            results.setdefault(part, []).extend(rows)
            for row in rows:
                print(part, json.dumps(row), flush=True)
            if file:
                file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
