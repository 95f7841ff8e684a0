r"""Hostile answers through the verification pool's workers, and what becomes of good ones beside them.

    python -m benchmarks.hostile [--answers 20000] [--workers 4] [--seed 0] [--json FILE]

Several workers, each in a process of its own, check answers that are made to break a checker
(`hostile_answers.py`), by turns with each verifier that needs no server. After every `GOOD_EVERY` of them one
answer whose verdict is known in a quiet run is checked too. A case fails when

- a worker raises, or ends
- an answer has no status, or a failure has a reward
- a check outlives its deadline
- a verdict holds what UTF-8 cannot hold, or a detail that is too long
- one that was judged is judged otherwise by a new worker that has seen nothing else
- a text of an answer ran as a program

The exit status is 1 if a case fails.
"""

import argparse
import json
import os
import random
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from actors.verification import LONGEST_DETAIL, VerificationWorker
from benchmarks.hostile_answers import MARK, hostile_answers
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import UNJUDGED, Status, Verdict

REFERENCES: dict[str, tuple[str, ...]] = {
    "math": ("42", r"\sqrt{2}+x", r"\{1, 2\}", "(0, 1]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    "math_verify_plain": ("42", r"\sqrt{2}+x", r"\{1, 2\}", "(0, 1]"),
    "number": ("42", "3.5 cm"),
    "choice": ("B",),
    "text": ("forty-two",),
    "token_f1": ("forty-two of them",),
    "json": ('{"a": 1}', "[1, 2]"),
    "pattern": ("",),
}
"""References by verifier."""
SETTINGS: dict[str, Any] = {"pattern": {"name": "pattern", "pattern": r"(\w+\s?)+=\s*42"}}
"""Of verifiers that need some; this expression backtracks without end on long words."""
SHARES = ("math", "math", *REFERENCES)
"""From which the verifier of an answer is drawn."""
GOOD: dict[str, tuple[str, str]] = {
    "math": (r"\boxed{\frac{2}{\sqrt{2}}}", r"\sqrt{2}"),
    "math_verify_plain": (r"\boxed{\frac{6}{4}}", "1.5"),
    "number": ("The answer is 42.0", "42"),
    "choice": ("The answer is (B).", "B"),
    "text": ("The answer is Forty-two.", "forty-two"),
    "token_f1": ("#### forty-two of them", "forty-two of them"),
    "json": ('{"a": 1.0}', '{"a": 1}'),
    "pattern": ("x = 42", ""),
}
"""A right answer to each verifier, which must stay right."""
GOOD_EVERY = 10
GROUP = 8
TIMEOUT_S = 2.0
QUIET_TIMEOUT_S = 60.0
MEMORY_MIB = 512
SLACK_S = 30.0
"""How much longer than its deadline a check may seem to take: it may wait for its child to start."""


@dataclass
class Outcome:
    """What became of the answers of one worker."""

    statuses: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By verifier, kind and status."""
    faults: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    """Cases that were judged, and took longer than `QUIET_TIMEOUT_S` in a quiet run. sympy takes one way or
    another by the order in which it meets its symbols, which differs from process to process."""
    slowest: list[tuple[float, str, str, str, str]] = field(default_factory=list)
    """Seconds, verifier, kind, status and the beginning of the response."""
    child_mib: int = 0
    """The largest child process."""
    worker_mib: int = 0

    def add(self, other: "Outcome") -> None:
        """Take in another worker's outcome."""
        self.statuses += other.statuses
        self.faults += other.faults
        self.undecided += other.undecided
        self.slowest = sorted(self.slowest + other.slowest, reverse=True)[:10]
        self.child_mib = max(self.child_mib, other.child_mib)
        self.worker_mib = max(self.worker_mib, other.worker_mib)


@dataclass(frozen=True)
class HostileCase:
    """One response for one verifier."""

    kind: str
    verifier: str
    response: str
    reference: str


def cases(count: int, seed: int, verifiers: Sequence[str] = SHARES) -> Iterator[HostileCase]:
    """Hostile cases, and a good one after every `GOOD_EVERY`."""
    rng = random.Random(seed)
    for number, hostile in enumerate(hostile_answers(count, seed)):
        name = rng.choice(verifiers)
        yield HostileCase(hostile.kind, name, hostile.response, rng.choice(REFERENCES[name]))
        if number % GOOD_EVERY == GOOD_EVERY - 1:
            name = rng.choice(verifiers)
            yield HostileCase("good", name, *GOOD[name])


def run_share(
    count: int,
    seed: int,
    share: int,
    shares: int,
    timeout_s: float,
    memory_mib: int,
    verifiers: Sequence[str] = SHARES,
) -> Outcome:
    """Check every `shares`-th of the cases with one worker, and what it judged with another one."""
    outcome, again = Outcome(), defaultdict[str, list[tuple[HostileCase, Verdict]]](list)
    by_problem = defaultdict[tuple[str, str], list[HostileCase]](list)
    others = {verifier_text(SETTINGS.get(name, name)) for name in verifiers}
    with closing(VerificationWorker(others.pop(), timeout_s, memory_mib=memory_mib, others=others)) as worker:
        for case in islice(cases(count, seed, verifiers), share, None, shares):
            group = by_problem[case.verifier, case.reference]
            group.append(case)
            if len(group) == GROUP:
                _check(worker, group, outcome, again, timeout_s)
                group.clear()
        for group in filter(None, by_problem.values()):
            _check(worker, group, outcome, again, timeout_s)
    for name, judged in again.items():
        random.Random(seed).shuffle(judged)
        text = verifier_text(SETTINGS.get(name, name))
        with closing(VerificationWorker(text, QUIET_TIMEOUT_S, cache_size=0, memory_mib=None)) as quiet:
            _compare(quiet, judged, outcome)
    outcome.child_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    outcome.worker_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return outcome


def _verdicts(worker: VerificationWorker, group: Sequence[HostileCase]) -> list[Verdict]:
    text = verifier_text(SETTINGS.get(group[0].verifier, group[0].verifier))
    problem = Problem.from_text("p", "", group[0].reference, verifier=text)
    return worker.verify([case.response for case in group], [True] * len(group), problem)


def _check(
    worker: VerificationWorker,
    group: Sequence[HostileCase],
    outcome: Outcome,
    again: dict[str, list[tuple[HostileCase, Verdict]]],
    timeout_s: float,
) -> None:
    try:
        verdicts = _verdicts(worker, group)
    except Exception as error:
        outcome.faults.append(f"{group[0].verifier}: the worker raised {type(error).__name__}: {error}"[:500])
        return
    for case, verdict in zip(group, verdicts, strict=True):
        outcome.statuses[case.verifier, case.kind, verdict.status] += 1
        beginning = ascii(case.response[:50])
        outcome.faults += [
            f"{case.verifier}, {beginning}: {fault}" for fault in faults_of(case, verdict, timeout_s)
        ]
        row = (verdict.seconds or 0.0, case.verifier, case.kind, str(verdict.status), beginning)
        outcome.slowest = sorted([*outcome.slowest, row], reverse=True)[:10]
        if verdict.status not in UNJUDGED:
            again[case.verifier].append((case, verdict))


def faults_of(case: HostileCase, verdict: Verdict, timeout_s: float) -> Iterator[str]:
    """What is wrong with a verdict, whatever it says of the answer."""
    if (verdict.reward is None) != (verdict.status in UNJUDGED):
        yield f"the status {verdict.status} with the reward {verdict.reward}"
    if (verdict.seconds or 0.0) > timeout_s + SLACK_S:
        yield f"{verdict.seconds:.1f} s, past its deadline"
    if len(verdict.detail) > LONGEST_DETAIL + 10:
        yield f"a detail of {len(verdict.detail)} characters"
    try:
        f"{verdict.answer}{verdict.detail}".encode()
    except UnicodeEncodeError as error:
        yield f"a text that is no Unicode: {error}"
    if case.kind == "good" and verdict.reward != 1.0:
        yield f"a good answer is {verdict.status}: {verdict.detail}"
    if os.path.exists(MARK):
        yield f"{MARK} was made: a text ran as a program"


def _compare(
    quiet: VerificationWorker, judged: Sequence[tuple[HostileCase, Verdict]], outcome: Outcome
) -> None:
    for case, before in judged:
        (now,) = _verdicts(quiet, [case])
        if now.status == Status.TIMEOUT:
            outcome.undecided.append(f"{case.verifier}, {case.response[:80]!a}: {before.status}")
        elif (now.status, now.reward, now.answer) != (before.status, before.reward, before.answer):
            change = f"{before.status} {before.reward}, in a quiet run {now.status} {now.reward}"
            outcome.faults.append(f"{case.verifier}, {case.response[:80]!a}: {change}")


def run(count: int, seed: int, workers: int, timeout_s: float, memory_mib: int) -> tuple[Outcome, float]:
    """All cases on several workers at a time; the outcome, and the seconds."""
    Path(MARK).unlink(missing_ok=True)
    outcome, started = Outcome(), time.perf_counter()
    with ProcessPoolExecutor(workers, get_context("spawn")) as processes:
        limits = timeout_s, memory_mib
        shares = [processes.submit(run_share, count, seed, n, workers, *limits) for n in range(workers)]
        for share in shares:
            outcome.add(share.result())
    return outcome, time.perf_counter() - started


def table(outcome: Outcome) -> list[str]:
    """Statuses by verifier and by kind, as lines of Markdown."""
    columns = sorted({status for _, _, status in outcome.statuses})
    lines = []
    for title, place in (("verifier", 0), ("kind", 1)):
        lines += [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name in dict.fromkeys(key[place] for key in outcome.statuses):
            counts: Counter[str] = Counter()
            for key, count in outcome.statuses.items():
                counts[key[2]] += count * (key[place] == name)
            lines.append(f"| {name} | {' | '.join(str(counts[column]) for column in columns)} |")
        lines.append("")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S)
    parser.add_argument("--memory-mib", type=int, default=MEMORY_MIB)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures to this file")
    options = parser.parse_args()
    outcome, seconds = run(
        options.answers, options.seed, options.workers, options.timeout_s, options.memory_mib
    )
    print("\n".join(table(outcome)))
    print("slowest:", *(f"  {row[0]:.2f} s  {'  '.join(row[1:])}" for row in outcome.slowest), sep="\n")
    print(f"largest process: checking {outcome.child_mib} MiB, worker {outcome.worker_mib} MiB")
    print(f"{outcome.statuses.total()} answers, {len(outcome.faults)} faults, {seconds:.0f} s")
    print(*outcome.faults[:50], sep="\n")
    if outcome.undecided:
        print(f"judged, but took longer than {QUIET_TIMEOUT_S:g} s in a quiet run:")
        print(*outcome.undecided[:50], sep="\n")
    statuses: Counter[str] = Counter()
    for (_, _, status), count in outcome.statuses.items():
        statuses[str(status)] += count
    line = json.dumps(
        {
            "benchmark": "hostile",
            "answers": options.answers,
            "seed": options.seed,
            "workers": options.workers,
            "statuses": dict(statuses),
            "faults": len(outcome.faults),
            "undecided": len(outcome.undecided),
            "slowest_s": outcome.slowest[0][0] if outcome.slowest else None,
            "checking_mib": outcome.child_mib,
            "worker_mib": outcome.worker_mib,
            "seconds": seconds,
        }
    )
    print(line)
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
