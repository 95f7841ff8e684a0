"""How long a run takes to read a large data file, and how much memory its driver then has.

    python benchmarks/rows.py [--rows 1000000] [--format parquet]

It writes a file of problems, reads it in a process of its own as a run does before it starts its pools, draws
the problems of 100 steps, and prints a table and a JSON line. Peak memory is that of the process, with the
pages of mapped files that the system may take back at any time; `own` is without them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "experiments" / "quickstart" / "base"
ROWS_A_STEP = 128
STEPS = 100
BLOCK = 50_000


def rows_of(count: int) -> Iterator[list[dict[str, Any]]]:
    """Rows like those of a set of mathematical problems, about 300 bytes each, block by block."""
    for start in range(0, count, BLOCK):
        yield [
            {
                "problem": f"{n}+{n * 7919 % 1000}=" + " Think of it step by step, and then once more." * 4,
                "answer": str(n + n * 7919 % 1000),
                "kind": f"level {n % 5}",
                "source": "made",
                "solution": f"The sum of {n} and {n * 7919 % 1000} is what is asked for.",
            }
            for n in range(start, min(start + BLOCK, count))
        ]


def write(path: Path, count: int) -> None:
    """A data file with that many rows."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        writer = None
        for block in rows_of(count):
            table = pa.Table.from_pylist(block)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
        return
    with path.open("w") as file:
        for block in rows_of(count):
            file.writelines(json.dumps(row) + "\n" for row in block)


def read(path: Path) -> dict[str, float]:
    """Read the file as a run does, and draw problems: seconds and GiB."""
    from orchestrator.config.sources import Source
    from orchestrator.data.problems import ProblemSource
    from orchestrator.data.tokens import load_tokens
    from orchestrator.data.training_prompts import TrainingPrompts

    tokens = load_tokens(str(MODEL), "<|self_reward|>")
    started, cpu = time.perf_counter(), time.process_time()
    source = ProblemSource(Source(str(path), "made"))
    prompts = TrainingPrompts(tokens.chat, [source], 4096)
    prompts.check()
    ready, cpu = time.perf_counter(), time.process_time() - cpu
    draws = prompts.draws(0)
    for _ in range(STEPS):
        draws.next(ROWS_A_STEP)
    drawn = time.perf_counter()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    gib = {name: int(status[name].split()[0]) / 2**20 for name in ("VmHWM", "VmRSS", "RssAnon")}
    return {
        "rows": len(source),
        "start_s": ready - started,
        "start_cpu_s": cpu,
        "draw_ms_a_step": (drawn - ready) / STEPS * 1000,
        "peak_gib": gib["VmHWM"],
        "own_gib": gib["RssAnon"],
    }


def main() -> None:
    """Write the file, read it in another process, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["parquet", "jsonl"], default="parquet")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is not None:
        print(json.dumps(read(options.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"made.{options.format}"
        write(path, options.rows)
        size = path.stat().st_size / 2**20
        command = [sys.executable, __file__, "--read", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        found = json.loads(done.stdout.splitlines()[-1])
    heads = ("format", "rows", "MiB", "start, s", "CPU time of it, s", "a step's problems, ms")
    print(f"| {' | '.join(heads)} | peak memory, GiB | own memory, GiB |")
    print("|---" * 8 + "|")
    print(
        f"| {options.format} | {found['rows']:,} | {size:,.0f} | {found['start_s']:.1f} | "
        f"{found['start_cpu_s']:.1f} | {found['draw_ms_a_step']:.0f} | {found['peak_gib']:.2f} | "
        f"{found['own_gib']:.2f} |"
    )
    print(json.dumps({"format": options.format, "mib": round(size, 1), **found}))


if __name__ == "__main__":
    main()
