"""Seconds from `laser train` to ready pools and to the first sampled token, start by start.

    python -m benchmarks.start [--config CONFIG] [--starts 3] [--cold] [--json FILE] [--set KEY=VALUE ...]

Each start is the real command in a process of its own, with one step and a run folder of its own; the
quick-start unless another configuration is given. The first start of a machine compiles for its CPU and reads
libraries from the disk. `--cold` gives the first start empty caches of what is compiled. Run it on a quiet
machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parents[1] / "experiments/quickstart.yaml"
POOLS_LINE = "starting the pools"
DEADLINE_S = 900.0


def start(
    config: Path, folder: Path, settings: Sequence[str], environment: dict[str, str]
) -> dict[str, float]:
    """Seconds of one start: until the pools start, can work, sample, and until its end.

    Raises:
        RuntimeError: The run failed.
    """
    command = [sys.executable, "-m", "orchestrator.cli", "train", str(config)]
    command += ["run.steps=1", f"run.dir={folder}", "run.name=start", "data.eval=null", *settings]
    before = time.monotonic()
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    driver, lines = 0.0, []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(POOLS_LINE):
            driver = time.monotonic() - before
    if process.wait(DEADLINE_S):
        raise RuntimeError(f"the run failed:\n{''.join(lines[-20:])}")
    summary = json.loads((folder / "start/summary.json").read_text())
    return {
        "driver": driver,
        "pools": summary["start_pools_seconds"],
        "token": summary["start_seconds"],
        "end": time.monotonic() - before,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, default=QUICKSTART)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        caches = {"VLLM_CACHE_ROOT": f"{made}/vllm", "TORCH_EXTENSIONS_DIR": f"{made}/extensions"}
        print("seconds from the command until")
        print(f"{'start':>6}{'Ray and MLflow':>16}{'ready pools':>14}{'first token':>14}{'its end':>10}")
        for number in range(1, options.starts + 1):
            seconds = start(
                options.config, Path(made) / str(number), options.set, caches if options.cold else {}
            )
            found.append(seconds)
            print(
                f"{number:6}{seconds['driver']:16.1f}{seconds['pools']:14.1f}{seconds['token']:14.1f}"
                f"{seconds['end']:10.1f}",
                flush=True,
            )
    line = json.dumps({"cold": options.cold, "starts": found})
    print(line)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
