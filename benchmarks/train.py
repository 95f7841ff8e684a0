r"""The whole training step beside TRL's, on the same work: the speed, the set-up, the memory, who was busy.

    python -m benchmarks.train [--run ours ours+stale1 trl-vllm] [--cores 2] [--dtype float32] [--rounds 2]
    python -m benchmarks.train --setup        install TRL 1.16.0 in an environment of its own (10 seconds)

The work: 16 problems x 8 samples, up to 64 prompt and 128 new tokens, temperature 1, learning rate 1e-5, no
KL penalty, math-verify's reward, one optimiser step a batch, nothing saved (`benchmarks.work`). `ours` is
`laser train` with all its pools, without the savings that skip samples. A contender may have additions:

    ours[+stale1][+laser][+colocate][+KEY=VALUE]     trl-vllm[+correction][+weights16]     trl-hf

`stale1`: rollout.max_staleness=1. `laser`: the self-reward and its loss. KEY=VALUE: any setting of a run.
`correction`: TRL's importance weights, its default, which take one more forward pass. `weights16`: TRL with
bfloat16 weights; its own bfloat16 keeps float32 weights. Odd rounds run the contenders in the order given,
even rounds in reverse. The figures of two contenders in the same round make a pair; the last table has the
medians of the pairs' ratios to the rival, the fastest of TRL's contenders.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import work
from benchmarks.observer import Observer
from orchestrator.storage.journal import StepEvent, read_events

TRL = "trl==1.16.0"
GIB = 2**30
DEADLINE_S = 600.0
PARTS = ("rollout", "learn", "sync", "verify")
ADDITIONS: dict[str, dict[str, Any]] = {
    "stale1": {"rollout.max_staleness": 1},
    "stale2": {"rollout.max_staleness": 2},
    "laser": {},
    "colocate": {"rollout.colocate": True},
}
CONTENDER = re.compile(
    rf"ours(\+({'|'.join(ADDITIONS)}|[\w.]+=[^+]+))*|trl-vllm(\+correction|\+weights16)*|trl-hf(\+weights16)*"
)


@dataclass(frozen=True)
class Options:
    """What all contenders of a table have in common."""

    work: Path
    python: Path
    """TRL's interpreter."""
    cores: int
    dtype: str
    engine_dtype: str
    steps: int
    skip: int
    """First steps that count as warm-up."""
    micro: int
    """Samples of TRL's micro-batch."""
    overrides: Sequence[str]


@dataclass(frozen=True)
class Measured:
    """One run of a contender. Seconds of parts are medians over its steps."""

    contender: str
    cores: int
    dtype: str
    samples_per_s: float
    tokens_per_s: float
    step_s: float
    setup_s: float
    """From the command's start to the first step's."""
    peak_gib: float
    own_cores: float
    foreign_cores: float
    tokens_per_sample: float
    reward: float
    parts: dict[str, float]


def environment(folder: Path) -> Path:
    """TRL's environment, installed at first use: TRL alone, beside the packages of this environment.

    Returns:
        Its interpreter.
    """
    python = folder / "bin" / "python"
    marker = folder / ".installed"
    if not marker.exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", TRL], check=True)
        packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (packages / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
        marker.write_text(TRL + "\n", encoding="utf-8")
    return python


def run_ours(contender: str, options: Options, folder: Path) -> Measured:
    """Train with `laser train` and read the run's journal."""
    additions = contender.split("+")[1:]
    settings = work.run_settings(
        options.work,
        folder,
        options.steps,
        options.cores,
        options.dtype,
        options.engine_dtype,
        alpha=0.1 if "laser" in additions else 0.0,
    )
    configuration = folder / "run.yaml"
    configuration.write_text(yaml.safe_dump(settings), encoding="utf-8")
    added = [addition for addition in additions if "=" in addition]
    for name in additions:
        added += [f"{key}={json.dumps(value)}" for key, value in ADDITIONS.get(name, {}).items()]
    command = [sys.executable, "-m", "orchestrator.cli", "train", str(configuration), *added]
    started = time.time()
    observer = _observed([*command, *options.overrides], folder / "log", options)
    events = [event for event in read_events(folder / "run") if isinstance(event, StepEvent)]
    ends = [event.time / 1000 for event in events]
    values = [event.values for event in events]
    return _measured(
        contender,
        options,
        observer,
        started,
        ready=ends[0] - values[0]["time/step"],
        ends=ends,
        tokens=[step["train/response_tokens"] * work.PROMPTS * work.SAMPLES for step in values],
        parts={part: [step[f"time/{part}"] for step in values] for part in PARTS},
        reward=statistics.mean(step["train/accuracy"] for step in values),
    )


def run_trl(contender: str, options: Options, folder: Path) -> Measured:
    """Train with TRL in its own environment."""
    name, *additions = contender.split("+")
    dtype = "bfloat16-weights" if "weights16" in additions else options.dtype
    command = [str(options.python), str(Path(__file__).with_name("train_trl.py"))]
    command += ["--work", str(options.work), "--out", str(folder / "trl"), "--dtype", dtype]
    command += ["--generate", name.removeprefix("trl-"), "--engine-dtype", options.engine_dtype]
    command += ["--threads", str(options.cores), "--micro", str(options.micro)]
    command += ["--steps", str(options.steps)] + ["--correction"] * ("correction" in additions)
    started = time.time()
    observer = _observed(command, folder / "log", options)
    report = json.loads((folder / "log").read_text(encoding="utf-8").rstrip().rpartition("\n")[2])
    step_s = [
        end - start for start, end in zip([report["ready"], *report["ends"]], report["ends"], strict=False)
    ]
    parts = report["parts"]
    # TRL has no clock of its own around the update: it is what the other parts of a step leave.
    parts["learn"] = [step - other for step, other in zip(step_s, parts.pop("score"), strict=True)]
    return _measured(
        contender,
        options,
        observer,
        started,
        report["ready"],
        report["ends"],
        report["tokens"],
        parts,
        report["reward"],
    )


def _observed(command: Sequence[str], log: Path, options: Options) -> Observer:
    """Run a command to its end.

    Raises:
        SystemExit: It failed, with the end of its log.
    """
    cores = sorted(os.sched_getaffinity(0))[-options.cores :]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        observer = Observer(process.pid)
        try:
            code = process.wait(DEADLINE_S)
        finally:
            process.kill()
            observer.stop()
    if code:
        raise SystemExit(
            f"{' '.join(command)}\nended with {code}:\n{log.read_text(encoding='utf-8')[-4000:]}"
        )
    return observer


def _measured(
    contender: str,
    options: Options,
    observer: Observer,
    started: float,
    ready: float,
    ends: Sequence[float],
    tokens: Sequence[float],
    parts: Mapping[str, Sequence[float]],
    reward: float,
) -> Measured:
    """The rates of the steps after the first ones."""
    skip = options.skip
    first, last = ends[skip - 1], ends[-1]
    samples = (len(ends) - skip) * work.PROMPTS * work.SAMPLES
    own, foreign = observer.cores(first, last)
    return Measured(
        contender=contender,
        cores=options.cores,
        dtype=options.dtype,
        samples_per_s=samples / (last - first),
        tokens_per_s=sum(tokens[skip:]) / (last - first),
        step_s=statistics.median(
            end - start for start, end in zip(ends[skip - 1 :], ends[skip:], strict=False)
        ),
        setup_s=ready - started,
        peak_gib=observer.peak / GIB,
        own_cores=own,
        foreign_cores=foreign,
        tokens_per_sample=sum(tokens[skip:]) / samples,
        reward=reward,
        parts={part: statistics.median(values[skip:]) for part, values in parts.items()},
    )


def run_rounds(contenders: Sequence[str], options: Options, rounds: int) -> list[list[Measured]]:
    """Every contender once a round, in the given order and in reverse by turns."""
    found = []
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for number in range(rounds):
        found.append([])
        for contender in contenders if number % 2 == 0 else list(reversed(contenders)):
            with tempfile.TemporaryDirectory(prefix="laser-train-") as folder:
                run = run_ours if contender.startswith("ours") else run_trl
                measured = run(contender, options, Path(folder))
            found[-1].append(measured)
            print(row(measured), flush=True)
    return found


COLUMNS = (
    "contender",
    "samples/s",
    "tokens/s",
    "step s",
    "rollout, learn, sync, verify s",
    "set-up s",
    "peak GiB",
    "own, foreign cores",
    "tokens a sample",
    "reward",
)


def row(one: Measured) -> str:
    """A line of the table."""
    parts = ", ".join(f"{one.parts[part]:.2f}" if part in one.parts else "-" for part in PARTS)
    cells = (
        one.contender,
        f"{one.samples_per_s:.1f}",
        f"{one.tokens_per_s:.0f}",
        f"{one.step_s:.2f}",
        parts,
        f"{one.setup_s:.0f}",
        f"{one.peak_gib:.2f}",
        f"{one.own_cores:.2f}, {one.foreign_cores:.2f}",
        f"{one.tokens_per_sample:.0f}",
        f"{one.reward:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def compare(rounds: Sequence[Sequence[Measured]]) -> dict[str, dict[str, float]]:
    """Each contender's medians, and the medians of its pairs' ratios to the fastest of TRL's."""
    by_name = {one.contender: [] for one in rounds[0]}
    for measured in rounds:
        for one in measured:
            by_name[one.contender].append(one)
    medians = {name: statistics.median(one.samples_per_s for one in ones) for name, ones in by_name.items()}
    rivals = [name for name in by_name if name.startswith("trl")]
    rival = max(rivals, key=lambda name: medians[name]) if rivals else None
    found = {}
    for name, ones in by_name.items():
        found[name] = {"samples_per_s": medians[name]}
        if rival is not None:
            pairs = list(zip(ones, by_name[rival], strict=True))
            for figure in ("samples_per_s", "tokens_per_s"):
                ratios = [getattr(one, figure) / getattr(other, figure) for one, other in pairs]
                found[name][f"{figure}_ratio"] = statistics.median(ratios)
                found[name][f"{figure}_ratio_low"] = min(ratios)
                found[name][f"{figure}_ratio_high"] = max(ratios)
    if rival is not None:
        print(f"\nRatios to {rival}, medians over {len(rounds)} pairs (lowest to highest):\n")
        print("| contender | samples/s | ratio of samples/s | ratio of tokens/s |\n|---|---|---|---|")
        for name, one in found.items():
            cells = [
                f"{one[f'{figure}_ratio']:.2f} ({one[f'{figure}_ratio_low']:.2f} to "
                f"{one[f'{figure}_ratio_high']:.2f})"
                for figure in ("samples_per_s", "tokens_per_s")
            ]
            print(f"| {name} | {one['samples_per_s']:.1f} | {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path.home() / ".cache/laser/benchmarks"
    parser.add_argument("--setup", action="store_true", help="only install TRL")
    parser.add_argument("--run", nargs="+", default=["ours", "trl-vllm"], metavar="CONTENDER")
    parser.add_argument("--cores", type=int, default=2, choices=(1, 2), help="cores that a contender may use")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="the learner's")
    parser.add_argument(
        "--engine-dtype", choices=("float32", "bfloat16"), help="vLLM's; the learner's if absent"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--skip", type=int, default=2, help="first steps that are left out of the rates")
    parser.add_argument("--micro", type=int, default=16, help="samples of TRL's micro-batch; 0: all")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides", help="of `ours`"
    )
    parser.add_argument("--environment", type=Path, default=cache / "trl", help="folder of TRL's environment")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the last line to this file")
    arguments = parser.parse_args()
    for contender in arguments.run:
        if not CONTENDER.fullmatch(contender):
            parser.error(f"--run: {contender} is no contender")
    needs_trl = arguments.setup or any(name.startswith("trl") for name in arguments.run)
    python = environment(arguments.environment) if needs_trl else Path()
    if arguments.setup:
        return
    options = Options(
        work=work.make_work(cache / "work"),
        python=python,
        cores=arguments.cores,
        dtype=arguments.dtype,
        engine_dtype=arguments.engine_dtype or arguments.dtype,
        steps=arguments.steps,
        skip=arguments.skip,
        micro=arguments.micro,
        overrides=arguments.overrides,
    )
    rounds = run_rounds(arguments.run, options, arguments.rounds)
    found = compare(rounds)
    line = json.dumps(
        {
            "benchmark": "train",
            "cores": options.cores,
            "dtype": options.dtype,
            "compared": found,
            "rounds": [[asdict(one) for one in measured] for measured in rounds],
        }
    )
    print(line)
    if arguments.json is not None:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
