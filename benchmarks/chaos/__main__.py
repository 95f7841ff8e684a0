"""The quick-start on a cluster, with a fault of another kind every 30 seconds.

    make chaos
    python -m benchmarks.chaos [--seeds 0 1 2] [--faults 20] [--every 30] [--steps 40] [--json FILE]

For each seed: a run that faults strike, then the same run undisturbed, on this machine alone with one engine.
Afterwards each step must be there once, in the journal and in MLflow. Each step must have the problems and
the samples of the undisturbed run, and the last one its weights, bit for bit. No problem may be dropped;
accuracy must be within noise; no actor may be left. A lost node is started again, as an operator's program
would do, and so is the run's command when it has ended with an error. Prints a table of the faults. Ends with
status 1 if anything does not hold.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.chaos.checks import Found, faults_of, first_other_step, read
from benchmarks.chaos.faults import FAULTS, drawn
from benchmarks.chaos.scene import CONFIG, ROOT, Scene
from benchmarks.chaos.timeline import Struck, Timeline, strike

SETTINGS = (
    *(
        "run.save_every=1",
        "run.eval_every=0",
        "run.save_rollouts_every=1",
        "evaluation.samples_per_problem=4",
    ),
    *("faults.deadline_s=10", "faults.first_deadline_s=60"),
)
QUIET_TIMEOUT_S = 1800.0
LEAVING_S = 30.0
"""How long the actors of a run that has ended may take to leave."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--faults", type=int, default=20, help="how many strike")
    parser.add_argument("--every", type=float, default=30.0, help="seconds from one fault to the next")
    parser.add_argument("--steps", type=int, default=40, help="least number of training steps")
    parser.add_argument("--kinds", nargs="*", default=[], choices=[fault.kind for fault in FAULTS])
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the run")
    options = parser.parse_args(arguments)
    results = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as made:
        for seed in options.seeds:
            folder = (options.folder or Path(made)) / f"seed-{seed}"
            folder.mkdir(parents=True)
            results.append(one_seed(folder, seed, options))
    if options.json:
        options.json.write_text(json.dumps(results) + "\n", encoding="utf-8")
    _print_kinds([Struck(**one) for result in results for one in result["struck"]])
    return 1 if any(result["wrong"] for result in results) else 0


def one_seed(folder: Path, seed: int, options: argparse.Namespace) -> dict:
    """A run with faults and one without."""
    settings = [*SETTINGS, *options.set, f"run.seed={seed}"]
    print(f"seed {seed}", flush=True)
    scene = Scene(folder, "struck", [*settings, f"run.steps={options.steps}"])
    for kind, reason in scene.left_out.items():
        print(f"  not tried: {kind}: {reason}", flush=True)
    before = time.monotonic()
    try:
        scene.start()
        faults = drawn(options.faults, seed, options.kinds, list(scene.left_out))
        timeline = strike(scene, faults, options.every, seed, options.steps)
        took = time.monotonic() - before
        left = _left(scene)
        found = read(scene.run, scene.tracking)
    finally:
        scene.stop()
    quiet = _quiet(folder, [*settings, f"run.steps={timeline.steps}"])
    wrong = faults_of(found, quiet, timeline.steps) + left
    return _told(seed, timeline, found, quiet, took, wrong)


def _quiet(folder: Path, settings: Sequence[str]) -> Found:
    """The undisturbed run, in which nothing but the settings of the problem is as in the other one."""
    runs, tracking = folder / "quiet", f"sqlite:///{folder}/quiet.db"
    command = [sys.executable, "-m", "orchestrator.cli", "train", str(CONFIG), *settings]
    ended = subprocess.run(
        [*command, f"run.dir={runs}", "run.name=quiet"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        | {"MLFLOW_TRACKING_URI": tracking},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=QUIET_TIMEOUT_S,
    )
    (folder / "quiet.log").write_text(ended.stdout)
    if ended.returncode:
        raise RuntimeError(f"the undisturbed run failed: {ended.stdout[-2000:]}")
    return read(runs / "quiet", tracking)


def _left(scene: Scene) -> list[str]:
    deadline = time.monotonic() + LEAVING_S
    while (left := scene.leftovers()) and time.monotonic() < deadline:
        time.sleep(1)
    return [f"left running: {', '.join(left)}"] if left else []


def _told(seed: int, timeline: Timeline, found: Found, quiet: Found, took: float, wrong: list[str]) -> dict:
    """Print what became of a run, and return it."""
    print(f"  {len(timeline.struck)} faults and {len(found.steps)} steps in {took:.0f} s")
    for line in timeline.restarts:
        print(f"  the command was started again: {line[:200]}")
    print(f"  accuracy {found.accuracy:.3f}, undisturbed {quiet.accuracy:.3f}")
    differs = first_other_step(found, quiet)
    print(
        f"  weights {'equal' if found.weights == quiet.weights else 'differ'}; samples "
        + ("are equal in all steps" if differs is None else f"differ from step {differs} on")
    )
    for line in wrong or ["all holds"]:
        print(f"  {line}", flush=True)
    return {
        "seed": seed,
        "steps": len(found.steps),
        "seconds": took,
        "accuracy": found.accuracy,
        "quiet_accuracy": quiet.accuracy,
        "weights_equal": found.weights == quiet.weights,
        "first_other_step": differs,
        "restarts": timeline.restarts,
        "wrong": wrong,
        "struck": [asdict(one) for one in timeline.struck],
    }


def _print_kinds(struck: Sequence[Struck]) -> None:
    """The table for docs/reliability.md: by kind, the seconds from the fault to the next finished step."""
    print("\n| fault | times | seconds to the next step, median (range) | first note |\n|---|---|---|---|")
    for fault in FAULTS:
        of_kind = [one for one in struck if one.kind == fault.kind]
        seconds = sorted(one.recovered_s for one in of_kind if one.recovered_s is not None)
        notes = [one.notes[0].splitlines()[0][:90] for one in of_kind if one.notes]
        if seconds:
            spread = f"{statistics.median(seconds):.0f} ({seconds[0]:.0f} to {seconds[-1]:.0f})"
            print(f"| {fault.text} | {len(of_kind)} | {spread} | {notes[0] if notes else ''} |")


if __name__ == "__main__":
    sys.exit(main())
