"""Where a step's time goes: how long each pool works and waits, with and without overlap, from a run's trace.

    python -m benchmarks.step [--steps 5] [--only NAME ...] [--no-pin] [--json FILE]

A random model whose answers have random lengths, up to 192 tokens, and an engine that has 12 of the 96 at a
time, so that groups end all over the step; a verifier that calls about half of them right. The real `laser
train` runs with `run.trace`, once for each way to overlap: not at all, streamed, and with batches ahead;
first with the policy loss alone (GRPO), then with LaSeR's. The engine's process has one CPU for itself and
the rank's another, which this benchmark pins.

`rollout` and `learn` are the seconds of a step in which the engine or the rank had work. `bound` is the
larger of both without overlap: no step of this batch can take less. `work / cores` is the sum of all pools'
work over the CPUs. `saved` is what a step saves, as a share of the smaller of both. The first two steps are
left out. Run it on a quiet machine with two CPUs; it takes about eight minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.memory import UNUSED_ROWS, Z_TOKEN, write_model, write_problems
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.tracking.trace import TRACE_FILE

SHAPE = {
    "vocab_size": 2_048 + UNUSED_ROWS,
    "hidden_size": 256,
    "intermediate_size": 1_024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
RARE_END_LOGIT_STD = 3.8
"""Ends about one in a hundred tokens of this vocabulary, see `benchmarks.memory`."""
WARM_UP_STEPS = 2
GRPO = {"loss.alpha": 0, "loss.tau": 0}
STREAMED = {"learning.stream": "true"}
VARIANTS: dict[str, dict[str, Any]] = {
    "GRPO": GRPO,
    "GRPO, streamed": GRPO | STREAMED,
    "GRPO, 1 ahead": GRPO | {"rollout.max_staleness": 1},
    "GRPO, 2 ahead": GRPO | {"rollout.max_staleness": 2},
    "LaSeR": {},
    "LaSeR, streamed": STREAMED,
    "LaSeR, 1 ahead": {"rollout.max_staleness": 1},
}
CPU_OF = {"ray::RolloutWorker": 0, "ray::LearnerRank": 1}
"""By the start of a process's title."""
POOL_OF = {"engine": "rollout", "verifier": "verify", "rank": "learn"}
"""By the first word of a worker's name in the trace."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Result:
    """One variant, in seconds of a step (medians)."""

    name: str
    step: float
    rollout: float
    verify: float
    learn: float

    @property
    def work(self) -> float:
        return self.rollout + self.verify + self.learn


def odd_length(response: str, reference: str) -> Verdict:
    """A verifier that judges by the number of characters: right for about half of all answers."""
    return Verdict(Status.CORRECT if len(response) % 2 else Status.WRONG, str(len(response)))


def settings(folder: Path, steps: int) -> dict[str, dict[str, Any]]:
    """The run's configuration: 96 samples a step."""
    return {
        "run": {"name": "step", "dir": str(folder), "steps": steps, "trace": True},
        "model": {"path": str(folder / "model")},
        "data": {"train": str(folder / "problems.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": 4,
            "prompts_per_step": 24,
            "max_prompt_tokens": 16,
            "max_response_tokens": 192,
            "cpus": 0.75,
            "engine_args": {"enforce_eager": True, "max_num_seqs": 12},
        },
        "verification": {"cpus": 0.25, "verifier": "benchmarks.step:odd_length"},
        "learning": {"tokens_per_micro_batch": 768},
        "self_reward": {"token": Z_TOKEN, "calibration_samples": 64},
    }


def read_trace(path: Path) -> tuple[list[Interval], dict[str, list[Interval]]]:
    """The driver's steps, and the spans of each pool, in seconds."""
    events = json.loads(path.read_text(encoding="utf-8"))
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    steps: list[Interval] = []
    pools: dict[str, list[Interval]] = {pool: [] for pool in POOL_OF.values()}
    for event in events:
        if event["ph"] != "X":
            continue
        interval = event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6
        worker = names[event["pid"]].split()[0]
        if worker in POOL_OF:
            pools[POOL_OF[worker]].append(interval)
        elif event["name"] == "step":
            steps.append(interval)
    return sorted(steps), pools


def covered(spans: Iterable[Interval], window: Interval) -> float:
    """Seconds of a window that any of the spans covers."""
    total, until = 0.0, window[0]
    for start, end in sorted(spans):
        start, end = max(start, until), min(end, window[1])
        if end > start:
            total += end - start
            until = end
    return total


def measure(name: str, steps: int, pin: bool) -> Result:
    """Train with one variant; the trace tells the rest.

    Raises:
        RuntimeError: The run failed.
    """
    with tempfile.TemporaryDirectory(prefix="laser-step-") as made:
        folder = Path(made)
        write_model(folder / "model", SHAPE, RARE_END_LOGIT_STD)
        write_problems(folder / "problems.jsonl")
        configuration = folder / "run.yaml"
        configuration.write_text(yaml.safe_dump(settings(folder, steps)), encoding="utf-8")
        overrides = [f"{key}={value}" for key, value in VARIANTS[name].items()]
        command = [sys.executable, "-m", "orchestrator.cli", "train", str(configuration), *overrides]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        with open(folder / "log", "w", encoding="utf-8") as log:
            run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            ended = threading.Event()
            pinner = threading.Thread(target=_pin, args=(run.pid, ended))
            if pin:
                pinner.start()
            try:
                run.wait(timeout=400)
            finally:
                run.kill()
                ended.set()
        if run.returncode:
            raise RuntimeError(f"{name}: {(folder / 'log').read_text(encoding='utf-8')[-2000:]}")
        windows, pools = read_trace(folder / "step" / TRACE_FILE)
    counted = windows[WARM_UP_STEPS:]
    busy = {
        pool: statistics.median(covered(spans, window) for window in counted) for pool, spans in pools.items()
    }
    return Result(name, statistics.median(end - start for start, end in counted), **busy)


def _pin(root: int, ended: threading.Event) -> None:
    """Give engine and rank a CPU each, all their threads, until the run has ended."""
    while not ended.wait(0.5):
        try:
            processes = psutil.Process(root).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                title = " ".join(process.cmdline())
                for start, cpu in CPU_OF.items():
                    if title.startswith(start):
                        for thread in process.threads():
                            os.sched_setaffinity(thread.id, {cpu})
            except (psutil.Error, ProcessLookupError):
                continue


def show(results: Sequence[Result], cores: int) -> None:
    """Print the table, and the figures as a line of JSON."""
    print(
        "\n| run | step | rollout | verify | learn | idle: engine | verifier | rank | bound | work / cores "
        "| step / bound | saved |"
    )
    print("| --- " * 12 + "|")
    plain = {result.name.split(",")[0]: result for result in results if "," not in result.name}
    rows = []
    for result in results:
        base = plain.get(result.name.split(",")[0], result)
        bound = max(base.rollout, base.learn)
        saved = (base.step - result.step) / min(base.rollout, base.learn)
        parts = result.rollout, result.verify, result.learn
        cells = [
            result.name,
            *(f"{seconds:.2f} s" for seconds in (result.step, *parts)),
            *(f"{1 - seconds / result.step:.0%}" for seconds in parts),
            f"{bound:.2f} s",
            f"{base.work / cores:.2f} s",
            f"{result.step / bound:.2f}",
            "-" if result is base else f"{saved:.0%}",
        ]
        print(f"| {' | '.join(cells)} |")
        rows.append(asdict(result) | {"bound": bound, "saved": saved})
    print(json.dumps(rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--no-pin", action="store_true", help="leave engine and rank on all CPUs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures to this file")
    options = parser.parse_args()
    results = []
    for name in options.only:
        results.append(measure(name, options.steps, not options.no_pin))
        print(f"{name}: {results[-1].step:.2f} s a step", file=sys.stderr, flush=True)
    show(results, cores=os.cpu_count() or 1)
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps([asdict(result) for result in results]) + "\n")


if __name__ == "__main__":
    main()
