r"""Measures verifiers of mathematics on pairs whose verdict is known: what passes, what does not, and speed.

    python benchmarks/verifier.py [CORPUS.jsonl ...] [--scorers PYTHON] [--kinds]

Ours (`math`), bare math-verify (`math_verify_plain`), and with `--scorers` verl's, which the interpreter of a
second environment runs (`other_scorers.py`). A pair is {answer, reference, expected, kind} and may be
`debatable`; those are left out. An error counts neither as right nor as wrong; a false negative includes it
where the answer is right, because it is worth 0 all the same.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.checking import RUN_CHECK, WARM_UP, WARM_UP_RESPONSE
from actors.deadline import DeadlineExceeded, DeadlineExecutor
from actors.verification import BOXES_ONLY
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests/actors/answers/answers.jsonl"
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Measured:
    """A verifier's verdicts on all pairs: True, False, or None for an error or a timeout."""

    name: str
    verdicts: Sequence[bool | None]
    seconds: float


@dataclass(frozen=True)
class Rates:
    """Counts over some pairs."""

    right: int
    wrong: int
    false_positives: int
    false_negatives: int
    errors: int

    @property
    def positive_rate(self) -> float:
        """Share of the wrong answers that pass."""
        return self.false_positives / max(self.wrong, 1)

    @property
    def negative_rate(self) -> float:
        """Share of the right answers that do not pass."""
        return self.false_negatives / max(self.right, 1)


def ours(name: str, pairs: Sequence[dict[str, Any]]) -> Measured:
    """One of our verifiers, in the killable process that runs it in training."""
    text = verifier_text(name)
    executor = DeadlineExecutor(RUN_CHECK, TIMEOUT_S, warm_up=(text, WARM_UP_RESPONSE, WARM_UP))
    started = time.perf_counter()
    verdicts = [_verdict(partial(executor.call, text), pair) for pair in pairs]
    seconds = time.perf_counter() - started
    executor.close()
    return Measured(name, verdicts, seconds)


def _verdict(check: Callable[..., Verdict], pair: dict[str, Any]) -> bool | None:
    try:
        problem = Problem.from_text("pair", "", pair["reference"])
        status = check(rf"\boxed{{{pair['answer']}}}", problem).status
    except DeadlineExceeded:
        return None
    return None if status is Status.ERROR else status is Status.CORRECT


def others(python: str, pairs: Sequence[dict[str, Any]]) -> list[Measured]:
    """verl's scorers, in the environment of another interpreter."""
    lines = "\n".join(json.dumps({key: pair[key] for key in ("answer", "reference")}) for pair in pairs)
    script = str(Path(__file__).with_name("other_scorers.py"))
    done = subprocess.run([python, script], input=lines, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2_000:])
    report = json.loads(done.stdout)
    return [Measured(name, found["verdicts"], found["seconds"]) for name, found in report.items()]


def rates(pairs: Sequence[dict[str, Any]], verdicts: Sequence[bool | None]) -> Rates:
    """The counts of some pairs."""
    right = [verdict for pair, verdict in zip(pairs, verdicts, strict=True) if pair["expected"] == "correct"]
    wrong = [verdict for pair, verdict in zip(pairs, verdicts, strict=True) if pair["expected"] != "correct"]
    return Rates(
        right=len(right),
        wrong=len(wrong),
        false_positives=sum(verdict is True for verdict in wrong),
        false_negatives=sum(verdict is not True for verdict in right),
        errors=sum(verdict is None for verdict in verdicts),
    )


def table(pairs: Sequence[dict[str, Any]], measured: Sequence[Measured]) -> list[str]:
    """All verifiers side by side, as a Markdown table."""
    lines = [
        "| verifier | wrong answers that pass | right answers that do not | errors | checks/s |",
        "|---|---|---|---|---|",
    ]
    for one in measured:
        found = rates(pairs, one.verdicts)
        lines.append(
            f"| {one.name} | {found.positive_rate:.1%} ({found.false_positives} of {found.wrong}) "
            f"| {found.negative_rate:.1%} ({found.false_negatives} of {found.right}) "
            f"| {found.errors} | {len(pairs) / one.seconds:,.0f} |"
        )
    return lines


def table_by_kind(pairs: Sequence[dict[str, Any]], measured: Sequence[Measured]) -> list[str]:
    """By kind of answer: wrong ones that pass, and right ones that do not, of each verifier."""
    lines = [
        "| kind | wrong, right | " + " | ".join(one.name for one in measured) + " |",
        "|---|---|" + "---|" * len(measured),
    ]
    for kind in sorted({pair["kind"] for pair in pairs}):
        chosen = [number for number, pair in enumerate(pairs) if pair["kind"] == kind]
        mine = [pairs[number] for number in chosen]
        cells = []
        for one in measured:
            found = rates(mine, [one.verdicts[number] for number in chosen])
            cells.append(f"{found.false_positives}, {found.false_negatives}")
        lines.append(f"| {kind} | {found.wrong}, {found.right} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table, and with --kinds the one by kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", nargs="*", type=Path, default=[CORPUS], help="files of pairs, JSON lines")
    parser.add_argument("--scorers", metavar="PYTHON", help="interpreter of an environment with verl")
    parser.add_argument("--kinds", action="store_true", help="also a table by kind of answer")
    options = parser.parse_args()
    rows = [
        json.loads(line) for path in options.corpus for line in path.read_text(encoding="utf-8").splitlines()
    ]
    pairs = [row for row in rows if not row.get("debatable")]
    measured = [ours(name, pairs) for name in BOXES_ONLY]
    if options.scorers:
        measured += others(options.scorers, pairs)
    print("\n".join(table(pairs, measured)))
    if options.kinds:
        print("\n" + "\n".join(table_by_kind(pairs, measured)))


if __name__ == "__main__":
    main()
