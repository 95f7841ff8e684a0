"""Worked solutions of two reasoning-gym tasks, for the cold start of the quick-start's tiny untrained model.

In: a folder and a seed. Out: sft.jsonl and untrained/. A solution writes its steps and a box. A share of them
slips in the last step, so that the base model can solve a problem but often does not.
"""

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path

from experiments.quickstart.task import write_jsonl, write_untrained
from orchestrator.data.procedural import ProceduralRows

SLIP_RATE = 0.4
TASKS = {
    "chain_sum": "min_terms=2&max_terms=2&min_digits=1&max_digits=2",
    "gcd": "min_numbers=2&max_numbers=2&min_value=2&max_value=60",
}
"""The tasks, and the settings that experiments/procedural.yaml has too."""


def sum_steps(question: str) -> tuple[str, int]:
    """The step of a sum or difference of two numbers, and its value."""
    a, sign, b = re.findall(r"(\d+) ([+-]) (\d+)", question)[-1]
    value = int(a) + int(b) if sign == "+" else int(a) - int(b)
    return f"{a}{sign}{b}={value};", value


def gcd_steps(question: str) -> tuple[str, int]:
    """Euclid's steps for two numbers, and their greatest common divisor."""
    a, b = sorted(map(int, re.findall(r"\d+", question)[-2:]), reverse=True)
    steps = ""
    while b:
        steps += f"{a}%{b}={a % b};"
        a, b = b, a % b
    return steps, a


STEPS = {"chain_sum": sum_steps, "gcd": gcd_steps}


def solved(task: str, size: int, seed: int, rng: random.Random) -> Iterator[dict[str, str]]:
    """Problems of a task with worked solutions, some of which slip."""
    for row in ProceduralRows(f"reasoning_gym:{task}?size={size}&seed={seed}&{TASKS[task]}"):
        steps, value = STEPS[task](row["problem"])
        if str(value) != row["answer"]:
            raise ValueError(f"{task}: {row['problem']!r} has the answer {row['answer']}, not {value}")
        slip = rng.choice([-2, -1, 1, 2]) if rng.random() < SLIP_RATE else 0
        yield {"problem": row["problem"].strip(), "solution": f"{steps}\\boxed{{{value + slip}}}"}


def main() -> None:
    """Write the solutions and the untrained model."""
    parser = argparse.ArgumentParser(prog="python -m experiments.procedural.task", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=10_000, help="solutions of each task")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    rows = [row for task in TASKS for row in solved(task, arguments.size, 1_000 + arguments.seed, rng)]
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    write_jsonl(arguments.out_dir / "sft.jsonl", rng.sample(rows, len(rows)))
    write_untrained(arguments.out_dir / "untrained", arguments.seed)


if __name__ == "__main__":
    main()
