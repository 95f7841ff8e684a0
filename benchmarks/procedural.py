"""Every task of the installed reasoning-gym as a source: does it load, does it render, is its answer scored?

    python -m benchmarks.procedural [--entries 3]

For each task it makes problems through a source, as training does, and gives the library's own answer to
the verifier. The reward must be what the task's own scorer gives that answer. Prints a table in Markdown and
a JSON line.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.verifiers.procedural import score_entry
from orchestrator.config.sources import PROCEDURAL, SourceConfig
from orchestrator.data.chat import ChatEncoder
from orchestrator.data.problems import ProblemSource
from orchestrator.data.procedural import entry_of
from orchestrator.data.prompts import render_prompt
from orchestrator.data.tokens import load_tokens
from orchestrator.errors import ConfigError, LaserError

MODEL = Path(__file__).parents[1] / "experiments" / "quickstart" / "base"


@dataclass(frozen=True)
class TaskResult:
    """What was found of one task."""

    task: str
    outcome: str
    """`full`: the library's own answer gets 1. `part`: its scorer gives less, and so does the verifier.
    `none`: the library names no answer for a problem. `fails`: anything else."""
    detail: str
    seconds: float


def check_task(task: str, entries: int, chat: ChatEncoder) -> TaskResult:
    """Make problems of a task, render them, and score the library's own answers."""
    started = time.perf_counter()

    def result(outcome: str, detail: str = "") -> TaskResult:
        return TaskResult(task, outcome, detail, round(time.perf_counter() - started, 2))

    try:
        config = SourceConfig(path=f"{PROCEDURAL}{task}?size={entries}&seed=1")
        source = ProblemSource(config.filled("train", "problem", "answer"))
        lowest = 1.0
        for problem in source:
            render_prompt(chat, problem.messages, "", problem.where)
            data, entry = entry_of(problem.fields)
            if entry["answer"] is None:
                return result("none", "the library names no answer; its scorer marks any response")
            own = float(data.score_answer(entry["answer"], entry))
            verdict = score_entry(f"<answer>{entry['answer']}</answer>", problem)
            if verdict.reward != min(max(own, 0.0), 1.0):
                return result("fails", f"its scorer gives {own:g}, the verifier {verdict.reward}")
            lowest = min(lowest, own)
    except (LaserError, ConfigError) as error:
        return result("fails", str(error).splitlines()[0])
    if lowest < 1:
        return result("part", f"its scorer gives its own answer {lowest:g}")
    return result("full")


def main() -> None:
    """Check every task and print what was found."""
    from reasoning_gym.factory import DATASETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=3, help="problems of each task")
    options = parser.parse_args()
    chat = load_tokens(str(MODEL), None).chat
    results = [check_task(task, options.entries, chat) for task in sorted(DATASETS)]
    counts = Counter(result.outcome for result in results)
    print(f"{len(results)} tasks: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    print("\n| task | outcome | why |\n|---|---|---|")
    for result in results:
        if result.outcome != "full":
            print(f"| `{result.task}` | {result.outcome} | {result.detail} |")
    slow = sorted(results, key=lambda result: -result.seconds)[:5]
    print("\nslowest: " + ", ".join(f"{result.task} {result.seconds:g} s" for result in slow))
    print(json.dumps({"counts": counts, "results": [asdict(result) for result in results]}))


if __name__ == "__main__":
    main()
