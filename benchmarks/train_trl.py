"""TRL's GRPO trainer on the work of `benchmarks.train`, run by the interpreter of TRL's own environment.

In: the folder that `benchmarks.work` made, and the choices below. Out: one line of JSON with the time at
which each step ended, its tokens, and the seconds of its parts. It imports nothing of this project.

TRL sends new weights to vLLM one by one through `load_weights`, which fails on vLLM's CPU back-end: that has
packed its layers. `reload` sends all of them through vLLM's own `reload_weights` instead.
"""

import argparse
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

PROMPTS, SAMPLES = 16, 8
PROMPT_TOKENS, RESPONSE_TOKENS = 64, 128
LEARNING_RATE = 1e-5


class Record:
    """When each step ended, and what its parts took."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.parts: dict[str, list[float]] = {}
        self.rewards: list[float] = []
        self.ready = 0.0
        self._tokens = 0
        self._parts: dict[str, float] = {}

    def generated(self, tokens: int) -> None:
        """Tokens of the step that runs."""
        self._tokens += tokens

    def timed(self, part: str, function: Any) -> Any:
        """`function`, whose seconds count as `part` of the step."""

        @functools.wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                taken = time.perf_counter() - started
                self._parts[part] = self._parts.get(part, 0.0) + taken

        return call

    def end(self) -> None:
        """The step has ended."""
        self.ends.append(time.time())
        self.tokens.append(self._tokens)
        for part, seconds in self._parts.items():
            self.parts.setdefault(part, []).append(seconds)
        self._tokens, self._parts = 0, {}


def prepare_process(options: argparse.Namespace) -> None:
    """Set the environment, before torch, vLLM and TRL are imported."""
    os.environ |= {
        "OMP_NUM_THREADS": str(options.threads),
        "MKL_NUM_THREADS": str(options.threads),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    import torch

    torch.set_num_threads(options.threads)


def is_right(text: str, answer: str) -> float:
    """1 where math-verify holds the last box of `text` equal to `answer`."""
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    how: dict[str, Any] = {
        "extraction_config": [LatexExtractionConfig(boxed_match_priority=0)],
        "parsing_timeout": None,
    }
    found = parse(text, **how)
    reference = parse(f"\\boxed{{{answer}}}", **how)
    return float(bool(found) and verify(reference, found, timeout_seconds=None))


def reload(self: Any) -> None:
    """Bring vLLM's engine to the policy's weights, in place of `VLLMGeneration.sync_weights`."""
    weights = [(name, weight.detach()) for name, weight in self._iter_named_params()]
    runner = self.llm.llm_engine.model_executor.driver_worker.model_runner
    runner.reload_weights(weights_iterator=iter(weights))
    self.llm.reset_prefix_cache()


def arguments_of(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """The keyword arguments of `GRPOConfig`."""
    total = PROMPTS * SAMPLES
    micro = options.micro or total
    arguments: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": total // micro,
        "num_generations": SAMPLES,
        "num_iterations": 1,
        "max_completion_length": RESPONSE_TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        "loss_type": "dapo",
        "use_cpu": True,
        "bf16": options.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "seed": options.seed,
        "model_init_kwargs": {"dtype": "bfloat16" if options.dtype == "bfloat16-weights" else "float32"},
        "dataloader_pin_memory": False,
    }
    if options.generate == "vllm":
        arguments |= {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": 0.1,
            "vllm_max_model_length": PROMPT_TOKENS + RESPONSE_TOKENS,
            "vllm_importance_sampling_correction": options.correction,
        }
    return arguments


def train(options: argparse.Namespace, folder: str, record: Record) -> None:
    """Train for `options.steps` steps."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            record.ready = time.time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            record.end()

    def reward(completions: Any, answer: Any, completion_ids: Any, **_: Any) -> list[float]:
        record.generated(sum(map(len, completion_ids)))
        rewards = [is_right(one[0]["content"], right) for one, right in zip(completions, answer, strict=True)]
        record.rewards += rewards
        return rewards

    if options.generate == "vllm":
        from trl.generation import vllm_generation

        vllm_generation.VLLMGeneration.sync_weights = record.timed("sync", reload)
        dtype = "float32" if options.dtype == "float32" else "bfloat16"
        vllm_generation.LLM = functools.partial(vllm_generation.LLM, dtype=options.engine_dtype or dtype)
    lines = (options.work / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {"prompt": [{"role": "user", "content": row["problem"]}], "answer": row["answer"]}
        for row in map(json.loads, lines)
    ]
    trainer = GRPOTrainer(
        model=str(options.work / "model"),
        args=GRPOConfig(**arguments_of(options, folder)),
        reward_funcs=record.timed("verify", reward),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.work / "model"),
        callbacks=[Steps()],
    )
    for part, method in (("rollout", "_generate_single_turn"), ("score", "_generate_and_score_completions")):
        setattr(trainer, method, record.timed(part, getattr(trainer, method)))
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of TRL's own files")
    parser.add_argument("--generate", choices=["vllm", "hf"], default="vllm")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "bfloat16-weights"], default="float32")
    parser.add_argument("--engine-dtype", help="vLLM's, when it is not the learner's")
    parser.add_argument("--correction", action="store_true", help="importance weights, one more forward pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro", type=int, default=16, help="samples of a micro-batch; 0: all of them")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prepare_process(options)
    record = Record()
    train(options, str(options.out), record)
    groups = [record.rewards[start : start + SAMPLES] for start in range(0, len(record.rewards), SAMPLES)]
    print(
        json.dumps(
            {
                "ready": record.ready,
                "ends": record.ends,
                "tokens": record.tokens,
                "parts": record.parts,
                "reward": sum(record.rewards) / max(1, len(record.rewards)),
                "mixed_groups": sum(len(set(group)) > 1 for group in groups) / max(1, len(groups)),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
