"""Weights after `kill -9` of the driver at random moments, beside those of a run that nobody disturbed.

    python -m benchmarks.kills [--kills 30] [--seed 0] [--json FILE] [--set KEY=VALUE ...]

The runs are a short quick-start with a checkpoint after each step. Each kill hits the driver alone. The
moments of one half are uniform over the time that the undisturbed run took; most of it is the start. Those of
the other half are uniform over the time of its steps, and count from the command's first checkpoint, so that
saving, learning and generating are hit too. The same command then resumes. A run that
reaches its end is compared with the undisturbed one, and the next run begins, until all kills are done.
Compared are the exported weights, the shards with AdamW's state, the random states, and each step's metrics
but times. Ends with status 1 if anything differs.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from orchestrator.storage.checkpoints import STATE, step_name
from orchestrator.storage.checksums import unsealed
from orchestrator.storage.journal import StepEvent, read_events

QUICKSTART = Path(__file__).parents[1] / "experiments/quickstart.yaml"
STEPS = 6
SETTINGS = (
    *(f"run.steps={STEPS}", "run.save_every=1", "run.eval_every=0", "data.eval=null"),
    *("rollout.prompts_per_step=4", "rollout.samples_per_prompt=4", "rollout.max_response_tokens=40"),
    *("loss.reasoning_warmup_steps=1", "loss.self_reward_warmup_steps=1", "learning.warmup_steps=3"),
    "self_reward.calibration_samples=16",
)
MEASURED = ("time/", "throughput/", "pool/", "start/", "memory/")
"""Metrics of machines, which differ between any two runs."""
DEADLINE_S = 900.0
ENDING_S = 60.0
"""How long the processes of a killed driver may take to end by themselves."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Processes of Ray itself that end by themselves after some more minutes."""


@dataclass(frozen=True)
class Moment:
    """When a kill hits: so many seconds after the command starts, or after its first checkpoint."""

    after_s: float
    from_checkpoint: bool


@dataclass
class Killed:
    """A run with its kills."""

    after_s: list[float] = field(default_factory=list)
    """Seconds from the start of the command, or from its first checkpoint, to each kill."""
    from_checkpoint: list[bool] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    """The newest checkpoint's step at each kill; 0 for none."""
    took_s: float = 0.0
    """Seconds of the command that reached the end."""
    left_behind: list[str] = field(default_factory=list)
    """Command lines of processes that outlived the driver by more than `ENDING_S`."""
    different: list[str] = field(default_factory=list)
    """What differs from the undisturbed run."""


def started(folder: Path, settings: Sequence[str]) -> "subprocess.Popen[bytes]":
    """The command that trains, and resumes, the run in `folder`."""
    command = [sys.executable, "-m", "orchestrator.cli", "train", str(QUICKSTART), *SETTINGS, *settings]
    command += [f"run.dir={folder.parent}", f"run.name={folder.name}"]
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def finish(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait for the end of the command.

    Raises:
        RuntimeError: It failed.
    """
    if process.wait(DEADLINE_S):
        raise RuntimeError(f"the run failed: {folder.with_suffix('.log').read_text()[-3000:]}")


def kill(process: "subprocess.Popen[bytes]") -> list[str]:
    """kill -9 of the driver alone. Returns which of its processes did not end by themselves."""
    below = psutil.Process(process.pid).children(recursive=True)
    others = [one for one in below if not any(agent in _command(one) for agent in AGENTS)]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(others, ENDING_S)
    left = []
    for other in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.append(_command(other))
            other.kill()
    return left


def _command(process: psutil.Process) -> str:
    """Its command line; empty if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def first_checkpoint(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait until the command has saved a checkpoint, or has ended."""
    saved, deadline = newest(folder), time.monotonic() + DEADLINE_S
    while newest(folder) == saved and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def killed_run(folder: Path, settings: Sequence[str], moments: list[Moment]) -> Killed:
    """Train a run to its end, with a kill at each of the moments; those that it does not reach stay in the
    list.
    """
    run = Killed()
    while True:
        process, started_at = started(folder, settings), time.monotonic()
        if moments and moments[-1].from_checkpoint:
            first_checkpoint(process, folder)
        try:
            process.wait(moments[-1].after_s if moments else DEADLINE_S)
        except subprocess.TimeoutExpired:
            run.left_behind += kill(process)
            run.after_s.append(round(moments[-1].after_s, 2))
            run.from_checkpoint.append(moments.pop().from_checkpoint)
            run.saved.append(newest(folder))
            continue
        finish(process, folder)
        run.took_s = time.monotonic() - started_at
        return run


def differences(folder: Path, other: Path) -> list[str]:
    """What differs between two finished runs: files of the last checkpoint, and metrics of steps."""
    found = []
    ours, theirs = (_sums(path) for path in (folder, other))
    found += [path for path in sorted(ours | theirs) if ours.get(path) != theirs.get(path)]
    ours_by_step, theirs_by_step = (_metrics(path) for path in (folder, other))
    found += [
        f"step {step}: {name}"
        for step in sorted(ours_by_step | theirs_by_step)
        for name in sorted(ours_by_step.get(step, {}) | theirs_by_step.get(step, {}))
        if ours_by_step.get(step, {}).get(name) != theirs_by_step.get(step, {}).get(name)
    ]
    return found


def _sums(folder: Path) -> dict[str, str]:
    state = folder / "checkpoints" / step_name(STEPS) / STATE
    return {path: found.digest for path, found in unsealed(state.read_bytes())[1].items()}


def _metrics(folder: Path) -> dict[int, dict[str, float]]:
    """The metrics of each step.

    Raises:
        RuntimeError: A step is there twice.
    """
    steps: dict[int, dict[str, float]] = {}
    for event in read_events(folder):
        if isinstance(event, StepEvent):
            if event.step in steps:
                raise RuntimeError(f"{folder}: step {event.step} is twice in the journal")
            steps[event.step] = {
                name: value for name, value in event.values.items() if not name.startswith(MEASURED)
            }
    return steps


def newest(folder: Path) -> int:
    """The step of a run's newest checkpoint; 0 for none."""
    steps = (int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*[0-9]"))
    return max(steps, default=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, compare and print. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    rng, runs = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as made:
        quiet, before = Path(made) / "quiet", time.monotonic()
        process = started(quiet, options.set)
        first_checkpoint(process, quiet)
        first_s = time.monotonic() - before
        finish(process, quiet)
        takes_s = time.monotonic() - before
        moments = [
            Moment(rng.uniform(0.0, takes_s - first_s if steps else takes_s), bool(steps))
            for steps in (number % 2 for number in range(options.kills))
        ]
        print(f"undisturbed: {takes_s:.1f} s for {STEPS} steps, {first_s:.1f} s to the first checkpoint")
        print(f"{'run':>4}  {'killed after (s) at saved step':60}{'left':>6}  differs")
        while True:
            folder = Path(made) / f"killed-{len(runs) + 1}"
            runs.append(run := killed_run(folder, options.set, moments))
            run.different = differences(folder, quiet)
            kills = ", ".join(
                f"{after:.1f}{' later' * later} at {step}"
                for after, later, step in zip(run.after_s, run.from_checkpoint, run.saved, strict=True)
            )
            differs = ", ".join(run.different[:4]) or "nothing"
            print(f"{len(runs):4}  {kills:60}{len(run.left_behind):6}  {differs}", flush=True)
            if not moments:
                break
            if not run.after_s:  # it ended before the moment: the machine was busier when the time was taken
                moments = [
                    Moment(moment.after_s * run.took_s / takes_s, moment.from_checkpoint)
                    for moment in moments
                ]
                takes_s = run.took_s
    kills_done = sum(len(run.after_s) for run in runs)
    found = {"kills": kills_done, "different": sum(bool(run.different) for run in runs)}
    line = json.dumps(found | {"undisturbed_s": takes_s, "runs": [asdict(run) for run in runs]})
    print(line)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    return 1 if found["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
