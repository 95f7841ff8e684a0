"""The memory that `laser check` plans, beside what a run takes: each pool's peak over two training steps.

    python -m benchmarks.memory [--size 0.1 0.2 0.5] [--json FILE] [--set KEY=VALUE ...]

Each size is a random model of Qwen2.5's kind, and 0.5 is Qwen2.5-0.5B's own shape. The real `laser train`
trains it in a process of its own, with all its pools; this process only reads /proc. Memory here is what only
a process's end gives back: its anonymous pages. Pages of files (libraries, weights that are mapped) stay out,
because the kernel takes them back at will, and Ray's memory monitor does not count them either. The object
store, in shared memory, is counted once. Run it on a quiet machine: 0.5 takes
18 GiB and, on two cores, about ten minutes, most of which vLLM compiles in its first run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from orchestrator.cluster.machine import GIB
from orchestrator.config.training import RunConfig, load_config
from orchestrator.pools.memory import DRIVER_BYTES, RAY_BYTES, VERIFIER_BYTES, model_size, plan_memory

SAMPLE_EVERY_S = 0.02
DEADLINE_S = 1500.0
LOOK_FOR_PROCESSES_EVERY_S = 0.5
START, END, Z_TOKEN, PAD = "<|im_start|>", "<|im_end|>", "<|self_reward|>", "<|endoftext|>"
SHAPES: dict[str, dict[str, int]] = {
    "0.1": {
        "vocab_size": 75_968,
        "hidden_size": 512,
        "intermediate_size": 2816,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
    },
    "0.2": {
        "vocab_size": 75_968,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
    },
    "0.5": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
}
UNUSED_ROWS = 271
"""Rows of Qwen2.5's embedding that no token uses."""
END_LOGIT_STD = 4.5
"""Spread of the logit of END over a random model's states. Above log(vocabulary), about 11, it ends the
response: here in 1 of 200 tokens."""
PROBLEMS = 32
POOLS = {
    "ray::LearnerRank": "learner rank",
    "ray::RolloutWorker": "engine",
    "ray::VerificationWorker": "verifier",
}
"""Of a process's title; its children belong to the same pool."""


def write_model(folder: Path, shape: Mapping[str, int], end_logit_std: float = END_LOGIT_STD) -> None:
    """Write a random model in bfloat16 with a byte-pair tokenizer; its answers have random lengths."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    vocabulary = write_tokenizer(folder, shape["vocab_size"] - UNUSED_ROWS)
    config = Qwen2Config(
        **shape,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[PAD],
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).bfloat16()
    with torch.no_grad():
        row = model.get_input_embeddings().weight[vocabulary[END]]
        row.mul_(end_logit_std / (row.float().std() * config.hidden_size**0.5))
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, eos_token_id=config.eos_token_id
    )
    model.save_pretrained(folder)


def write_tokenizer(folder: Path, tokens: int) -> dict[str, int]:
    """Write a byte-pair tokenizer of so many tokens with a chat template; returns its vocabulary."""
    from transformers import Qwen2Tokenizer

    from experiments.quickstart.task import CHAT_TEMPLATE

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = byte_pairs(tokens)
    Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START, Z_TOKEN],
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return vocabulary


def byte_pairs(tokens: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-pair vocabulary of so many tokens: bytes, then all pairs of bytes, then some triples."""
    from tokenizers.pre_tokenizers import ByteLevel

    special = [PAD, START, END, Z_TOKEN]
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(special + letters)}
    merges = []
    for left in (*letters, *(first + second for first in letters for second in letters)):
        for right in letters:
            if len(vocabulary) == tokens:
                return vocabulary, merges
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    raise ValueError(f"{tokens} tokens are more than all triples of bytes")


def write_problems(path: Path) -> None:
    """Write short problems, so that nearly all tokens are the responses'."""
    rows = [{"problem": f"{number}+{number}=?", "answer": str(2 * number)} for number in range(PROBLEMS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def settings(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    """The run's configuration: micro-batches of 1,024 tokens, four samples of the greatest length."""
    return {
        "run": {"name": "memory", "dir": str(folder), "steps": 2},
        "model": {"path": str(model)},
        "data": {"train": str(folder / "problems.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4,
            "prompts_per_step": 2,
            "max_prompt_tokens": 16,
            "max_response_tokens": 240,
            "cpus": 0.75,
            # vLLM compiles for minutes, and g++ takes 0.3 GiB meanwhile, of which nothing stays.
            "engine_args": {"enforce_eager": True},
        },
        "verification": {"cpus": 0.25},
        "learning": {"dtype": "bfloat16", "tokens_per_micro_batch": 1024},
        "loss": {"c_ref": -11.0},
        "self_reward": {"token": Z_TOKEN, "calibration_samples": 128},
    }


@dataclass(frozen=True)
class Result:
    """One size: bytes by pool."""

    size: str
    planned: dict[str, int]
    measured: dict[str, int]
    seconds: int
    failure: str
    """The end of the run's log; empty where it reached its last step."""


@dataclass
class Peaks:
    """Bytes at their largest, by pool, and of all pools and shared memory at one moment."""

    pools: dict[str, int] = field(default_factory=dict)
    shared: int = 0
    total: int = 0

    def add(self, pools: dict[str, int], shared: int) -> None:
        """Take in one sample."""
        for name, used in pools.items():
            self.pools[name] = max(used, self.pools.get(name, 0))
        self.shared = max(shared, self.shared)
        self.total = max(sum(pools.values()) + shared, self.total)


class Sampler:
    """Reads the memory of a command's processes by pool, from its start to its end."""

    def __init__(self, command: subprocess.Popen) -> None:
        self.command = command
        self.root = psutil.Process(command.pid)
        self.pool_of: dict[int, str] = {}
        self.stores: list[str] = []
        """Files of this run's object stores, as paths in /proc."""

    def run(self, deadline_s: float) -> Peaks:
        """Sample until the command ends.

        Raises:
            TimeoutError: It did not end in time.
        """
        peaks, started, looked = Peaks(), time.monotonic(), -1.0
        while self.command.poll() is None:
            now = time.monotonic() - started
            if now > deadline_s:
                raise TimeoutError(f"the run did not end within {deadline_s:g} s")
            if now - looked > LOOK_FOR_PROCESSES_EVERY_S:
                self._look_for_processes()
                looked = now
            pools: dict[str, int] = {}
            for pid, pool in self.pool_of.items():
                pools[pool] = pools.get(pool, 0) + anonymous_memory(pid)
            peaks.add(pools, sum(map(allocated, self.stores)))
            time.sleep(SAMPLE_EVERY_S)
        return peaks

    def _look_for_processes(self) -> None:
        found = {self.root.pid: "driver"}
        try:
            processes = self.root.children(recursive=True)  # parents come before their children
        except psutil.NoSuchProcess:
            processes = []
        for process in processes:
            try:
                title, parent = " ".join(process.cmdline()), process.ppid()
            except psutil.Error:
                continue
            own = next((pool for start, pool in POOLS.items() if title.startswith(start)), None)
            of_parent = found.get(parent)
            inherited = of_parent if of_parent in POOLS.values() else "Ray"
            # Ray starts Python processes in advance, which become actors.
            waits = title.startswith("ray::IDLE") or "default_worker.py" in title.split(" --")[0]
            idle = "starting" if waits else None
            found[process.pid] = own or idle or inherited
        self.pool_of = found
        raylets = [pid for pid, pool in found.items() if pool == "Ray" and "raylet" in _title(pid)]
        self.stores = [path for pid in raylets for path in _object_stores(pid)]


def anonymous_memory(pid: int) -> int:
    """Bytes of a process's anonymous memory; 0 once it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("RssAnon"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def allocated(path: str) -> int:
    """Bytes that a file takes, in memory for one in /dev/shm; 0 once it has gone."""
    try:
        return 512 * os.stat(path).st_blocks
    except OSError:
        return 0


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")[0]
    except OSError:
        return ""


def _object_stores(pid: int) -> list[str]:
    """The object store that a raylet has open: a deleted file in /dev/shm, reached by its descriptor."""
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return []
    found = {}
    for descriptor in descriptors:
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("/dev/shm/"):
            found[target] = str(descriptor)
    return list(found.values())


def measure(size: str, folder: Path, overrides: Sequence[str]) -> Result:
    """Plan one size, and train it for two steps.

    Args:
        folder: Keeps the model, so that what vLLM compiles for it is found again.

    Raises:
        TimeoutError: The run did not end in time.
    """
    model = folder / f"{size}B"
    if not (model / "config.json").exists():
        # In a process of its own: what it takes must not stay while another size is measured.
        subprocess.run([sys.executable, "-m", "benchmarks.memory", "--make", size, str(model)], check=True)
    with tempfile.TemporaryDirectory(prefix="laser-memory-") as name:
        run = Path(name)
        write_problems(run / "problems.jsonl")
        configuration = run / "run.yaml"
        configuration.write_text(yaml.safe_dump(settings(run, model)), encoding="utf-8")
        planned = plan(load_config(configuration, overrides))
        started = time.monotonic()
        with open(run / "log", "w", encoding="utf-8") as log:
            command = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", "train", str(configuration), *overrides],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                peaks = Sampler(command).run(DEADLINE_S)
            finally:
                command.kill()
        measured = peaks.pools | {"object store": peaks.shared, "all": peaks.total}
        seconds = round(time.monotonic() - started)
        ended = "" if command.returncode == 0 else (run / "log").read_text(encoding="utf-8")[-2000:]
        return Result(size, planned, measured, seconds, ended)


def plan(config: RunConfig) -> dict[str, int]:
    """The bytes that `laser check` plans, by pool."""
    shape = model_size(config.model.path)
    planned = plan_memory(config, shape)
    return {
        "learner rank": planned.rank.peak,
        "engine": planned.engine.peak,
        "verifier": VERIFIER_BYTES,
        "driver": DRIVER_BYTES,
        "Ray": RAY_BYTES,
        "object store": 2 * planned.published,
        "all": planned.host_total,
    }


def show(result: Result) -> None:
    """Print the table of one size, and its figures as a line of JSON."""
    if result.failure:
        print(f"{result.size}B: the run failed after {result.seconds} s:\n{result.failure}")
    print(f"\n| {result.size}B, {result.seconds} s | planned | measured | ratio |\n| --- | --- | --- | --- |")
    for name, planned in result.planned.items():
        measured = result.measured.get(name, 0)
        ratio = f"{planned / measured:.2f}" if measured else "-"
        print(f"| {name} | {planned / GIB:.2f} GiB | {measured / GIB:.2f} GiB | {ratio} |")
    print(json.dumps(asdict(result)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "laser-memory-models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append each size's figures to this file")
    parser.add_argument("--make", nargs=2, metavar=("SIZE", "FOLDER"), help="only write a model")
    options = parser.parse_args()
    if options.make:
        write_model(Path(options.make[1]), SHAPES[options.make[0]])
        return
    for size in options.size:
        result = measure(size, options.folder, options.overrides)
        show(result)
        if options.json is not None:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
