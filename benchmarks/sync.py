"""How fast weights get from the learner to an engine, beside a memory copy and vLLM's own reload.

    python -m benchmarks.sync [--size 10 100 464 1000 2000] [--learner float32] [--json FILE]

Sizes are MB of published weights: random models of Qwen2.5's kind with a tied head. The sender stands for
rank 0 with all weights gathered, because a rank that trains 2 GB of weights takes 16 GB; it packs them with
the learner's own code. The receiver is a real engine. Times are medians of some repeats after a first one,
which takes fresh memory from the kernel.

`copy` is a memory copy of the same bytes to the object store and back, by one process. `transport` ends when
the engine has mapped the last chunk, `whole` when it has loaded the weights. `reload` is vLLM's own
`reload_weights` in the engine, of tensors that it has mapped already. Run it on a quiet machine; 2000 takes
12 GiB.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.host_memory import return_large_blocks
from actors.rollout import RolloutWorker
from benchmarks.memory import write_tokenizer
from orchestrator.config.training import RolloutConfig
from orchestrator.messages.requests import EngineSettings
from orchestrator.messages.weights import pack_chunks

MB = 1_000_000
SHAPES = {
    10: (2_048, 256, 1_024),
    100: (32_000, 512, 2_048),
    464: (75_968, 768, 3_072),
    1000: (151_936, 896, 4_864),
    2000: (151_936, 1_536, 8_960),
}
"""Vocabulary, width, and width between, by MB; the number of layers makes the size."""
CHUNK_MIB = RolloutConfig.model_fields["sync_chunk_mib"].default


@dataclass(frozen=True)
class Result:
    """One size, in seconds."""

    megabytes: float
    chunks: int
    copy: float
    transport: float
    load: float
    whole: float
    reload: float


def model_config(size: int, dtype: torch.dtype) -> Any:
    """Qwen2's configuration with so many MB of weights in this precision."""
    from transformers import Qwen2Config

    vocabulary, width, between = SHAPES[size]
    layer = width * (3 * between + 2 * width + 256)
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=between,
        num_hidden_layers=max(1, round((size * MB / dtype.itemsize - vocabulary * width) / layer)),
        num_attention_heads=width // 64,
        num_key_value_heads=2,
        max_position_embeddings=4_096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )


class Sender:
    """Rank 0, once it has gathered the weights.

    Args:
        model_path: The folder of the model's configuration.
        learner: The precision that it holds the weights in.
    """

    def __init__(self, model_path: str, learner: str) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        from actors.zero3 import LogProbModel

        torch.set_num_threads(1)
        return_large_blocks()
        with torch.device("meta"):
            model = LogProbModel(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path)))
        dtype = getattr(torch, learner)
        self.tied = model.tied_names()
        self.parameters = {
            name: torch.empty(parameter.shape, dtype=dtype).normal_(std=0.02)
            for name, parameter in model.checkpoint_parameters().items()
        }

    def publish(self, dtype: str, chunk_bytes: int) -> tuple[float, list[Any]]:
        """As a rank's `publish`: when it began, and references to the chunks."""
        started = time.time()
        chunks = pack_chunks(self.parameters.items(), getattr(torch, dtype), chunk_bytes, self.tied)
        return started, [ray.put(chunk) for chunk in chunks]

    def copy(self, size: int) -> float:
        """Seconds of a memory copy of so many bytes to the object store and back."""
        source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
        started = time.perf_counter()
        np.copyto(target, ray.get(ray.put(source)))
        return time.perf_counter() - started


class Receiver(RolloutWorker):
    """An engine that says when it has the weights."""

    async def read(self, chunk_refs: Sequence[Any]) -> float:
        """Map all chunks; returns when that was done."""
        for ref in chunk_refs:
            for _ in ray.get(ref).tensors():
                pass
        return time.time()

    async def load(self, version: int, chunk_refs: Sequence[Any]) -> tuple[float, float]:
        """Load the weights; returns the seconds that it took, and when it was done."""
        started = time.time()
        await self.load_weights(version, chunk_refs)
        return time.time() - started, time.time()

    async def reload(self, chunk_refs: Sequence[Any]) -> float:
        """Seconds of vLLM's own reload of the same weights from memory."""
        tensors = [pair for ref in chunk_refs for pair in ray.get(ref).tensors()]
        started = time.time()
        await self.engine._between_steps(
            lambda: self.engine.engine.collective_rpc(_reload, args=(iter(tensors),))
        )
        return time.time() - started


def _reload(worker: Any, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    worker.model_runner.reload_weights(weights_iterator=weights)


def engine_settings(model_path: str, dtype: str) -> EngineSettings:
    """An engine on one CPU, which starts with weights of its own."""
    return EngineSettings(
        model_path=model_path,
        eos_tokens=(2,),
        z_token=None,
        max_prompt_tokens=64,
        max_response_tokens=64,
        dtype=dtype,
        kv_cache_gib=0.1,
        engine_args={"enforce_eager": True, "load_format": "dummy"},
    )


def measure(size: int, learner: str, dtype: str, repeats: int, chunk_bytes: int) -> Result:
    """Times of one size."""
    with tempfile.TemporaryDirectory(prefix="laser-sync-") as folder:
        config = model_config(size, getattr(torch, dtype))
        config.save_pretrained(folder)
        write_tokenizer(Path(folder), min(SHAPES[size][0], 1_024))
        sender = ray.remote(Sender).options(num_cpus=1).remote(folder, learner)
        receiver = ray.remote(Receiver).options(num_cpus=1).remote(engine_settings(folder, dtype))
        ray.get(receiver.ping.remote())
        times: dict[str, list[float]] = {
            name: [] for name in ("copy", "transport", "load", "whole", "reload")
        }
        for version in range(repeats + 1):
            started, refs = ray.get(sender.publish.remote(dtype, chunk_bytes))
            times["transport"].append(ray.get(receiver.read.remote(refs)) - started)
            started, refs = ray.get(sender.publish.remote(dtype, chunk_bytes))
            seconds, ended = ray.get(receiver.load.remote(version, refs))
            times["load"].append(seconds)
            times["whole"].append(ended - started)
            times["reload"].append(ray.get(receiver.reload.remote(refs)))
            located = ray.experimental.get_object_locations(refs)
            published = sum(location["object_size"] for location in located.values())
            chunks = len(refs)
            del refs
            times["copy"].append(ray.get(sender.copy.remote(published)))
        for actor in (sender, receiver):
            ray.kill(actor)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return Result(published / MB, chunks, **medians)


def show(results: Sequence[Result]) -> None:
    """Print the table, and the figures as a line of JSON."""
    print("\n| weights | chunks | copy | transport | copy / transport | whole | reload | whole / reload |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for result in results:
        cells = [
            f"{result.megabytes:.0f} MB",
            str(result.chunks),
            *(_seconds(seconds, result) for seconds in (result.copy, result.transport)),
            f"{result.copy / result.transport:.0%}",
            _seconds(result.whole, result),
            f"{result.reload:.3f} s",
            f"{result.whole / result.reload:.2f}",
        ]
        print(f"| {' | '.join(cells)} |")
    print(json.dumps([asdict(result) for result in results]), flush=True)


def _seconds(seconds: float, result: Result) -> str:
    return f"{seconds:.3f} s ({result.megabytes / 1000 / seconds:.2f} GB/s)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", type=int, choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--learner", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="the engine's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk-mib", type=int, default=CHUNK_MIB)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures to this file")
    options = parser.parse_args()
    # Two versions of the weights, and the copy beside them.
    store = int(3.3 * MB * max(options.size)) + 256 * MB
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=store, log_to_driver=False)
    results = [
        measure(size, options.learner, options.dtype, options.repeats, options.chunk_mib * 2**20)
        for size in options.size
    ]
    show(results)
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps([asdict(result) for result in results]) + "\n")


if __name__ == "__main__":
    main()
