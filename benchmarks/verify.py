r"""Checks a second and core of the verification pool's worker, beside bare math-verify and hanging answers.

    python -m benchmarks.verify [--checks 1500] [--rounds 3] [--seconds 20] [--json FILE]

The answers are those of the verifiers' tests, in groups of 8 responses to one problem. `bare` calls
math-verify in a new process, without a deadline. The worker is the real one, without Ray: with a child
process, a deadline, its cache and the rule of boxes. `distinct`: every answer once. `repeats`: each group
holds 2 different answers, as a model's samples do. `hanging`: one answer in 100 never ends, so the worker
kills its child after a second; bare math-verify has no answer to that. Bare and worker take turns. Core-
seconds count the worker's children; the waits for a hanging answer cost none of another core's time.

The second table is about the good answers beside the hanging ones. Several workers take groups from one
queue for some seconds, as many at a time as the pool's do, once without hanging answers and once with one in
1,000, 200 and 100: how many good answers a second are checked, and by how much fewer. `as fast as possible`
offers the next group at once; `at half the rate` offers half of what the workers could do without hanging
answers, as engines do, which are slower than verifiers.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from actors.deadline import CALLS_ASIDE
from actors.math_check import verify_math
from actors.verification import VerificationWorker
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

WARM_UP = (r"\boxed{\frac{\sqrt{4}}{4}}", r"\frac12")
"""A check that imports all that checks import."""

CORPUS = Path(__file__).parents[1] / "tests/actors/answers/answers.jsonl"
GROUP = 8
GROUPS_AT_A_TIME = 2 + CALLS_ASIDE
"""Of one worker: `VERIFIER_TASKS` of the pools, whose module the children here should not import."""
TIMEOUT_S = 1.0
HANGING = "hangs"
HANGING_EVERY = 100
BESIDE_EVERY = (1_000, 200, 100)
"""One answer in so many hangs, in the second table."""
PATIENT_S = 10.0
"""Deadline of the checks that are to end."""

Group = tuple[list[str], str]
"""Responses to one problem, and its reference."""


@dataclass(frozen=True)
class Speed:
    """Checks of one way."""

    way: str
    answers: str
    checks: int
    seconds: float
    core_seconds: float
    timeouts: int


def may_hang(response: str, reference: str) -> Verdict:
    """The verifier of `hanging`: math-verify, and for a marked response a loop without end."""
    while HANGING in response:
        pass
    return verify_math(response, reference)


def make_groups(checks: int, different: int, hanging_every: int | None = None) -> list[Group]:
    """Groups from the corpus: each answer stands in for a response, against its own reference.

    Args:
        checks: Responses in all.
        different: Answers of a group that differ.
        hanging_every: One response in so many hangs; none when None.
    """
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    made: list[Group] = []
    count = 0
    while count < checks:
        row = rows[len(made) % len(rows)]
        # A number at the end keeps the texts of a group apart without another kind of answer.
        answers = [
            row["answer"] + (f"+{count + place % different}" if place % different else "")
            for place in range(GROUP)
        ]
        responses = [rf"Therefore \boxed{{{answer}}}" for answer in answers]
        if hanging_every is not None and count % hanging_every < GROUP:
            responses[0] = rf"\boxed{{{HANGING}}}"
        made.append((responses, row["reference"]))
        count += GROUP
    return made


def bare(answers: str, groups: Sequence[Group]) -> Speed:
    """math-verify alone, in a new process: it and sympy remember what they have read before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        seconds, core_seconds = process.submit(_bare, groups).result()
    checks = sum(len(responses) for responses, _ in groups)
    return Speed("bare math-verify", answers, checks, seconds, core_seconds, timeouts=0)


def _bare(groups: Sequence[Group]) -> tuple[float, float]:
    """Seconds and core-seconds of the checks, without the imports."""
    import math_verify

    verify_math(*WARM_UP)
    started, used = time.perf_counter(), time.process_time()
    for responses, reference in groups:
        gold = math_verify.parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
        for response in responses:
            math_verify.verify(gold, math_verify.parse(response, parsing_timeout=None), timeout_seconds=None)
    return time.perf_counter() - started, time.process_time() - used


def through_worker(worker: VerificationWorker, groups: Sequence[Group]) -> Iterator[Status]:
    """The worker: a status for each response."""
    for responses, reference in groups:
        for verdict in worker.verify(
            responses, [True] * len(responses), Problem.from_text(reference, "", reference)
        ):
            yield verdict.status


def timed(way: str, answers: str, check: Callable[[], Iterator[Status]]) -> Speed:
    """Seconds of a way, and core-seconds of this process and its children."""
    used, started = _core_seconds(), time.perf_counter()
    statuses = list(check())
    seconds = time.perf_counter() - started
    timeouts = sum(status is Status.TIMEOUT for status in statuses)
    return Speed(way, answers, len(statuses), seconds, _core_seconds() - used, timeouts)


def _core_seconds() -> float:
    process = psutil.Process()
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def measure(checks: int, rounds: int) -> list[Speed]:
    """All ways in turns; a new worker each time, so that no round finds another's cache."""
    cases = {"distinct": (GROUP, None), "repeats": (2, None), "hanging": (GROUP, HANGING_EVERY)}
    found = []
    for _ in range(rounds):
        for answers, (different, hanging) in cases.items():
            groups = make_groups(checks, different, hanging)
            if hanging is None:
                found.append(bare(answers, groups))
            verifiers = {"worker, math_verify_plain": "math_verify_plain", "worker, math": "math"}
            if hanging is not None:
                verifiers = {"worker, math_verify_plain": "benchmarks.verify:may_hang"}
            for way, verifier in verifiers.items():
                worker = VerificationWorker(verifier, PATIENT_S if hanging is None else TIMEOUT_S)
                try:
                    found.append(
                        timed(way, answers, lambda w=worker, groups=groups: through_worker(w, groups))
                    )
                finally:
                    worker.close()
    return found


def good_per_s(workers: int, seconds: float, hanging_every: int | None, rate: float | None = None) -> float:
    """Good answers that several workers check a second.

    Args:
        seconds: How long they check.
        hanging_every: One answer in so many hangs; none when None.
        rate: Answers a second that are offered; without a limit when None.
    """
    groups = make_groups(100_000, GROUP, hanging_every)
    numbers, lock = itertools.count(), threading.Lock()
    with ExitStack() as stack:
        verifier = "benchmarks.verify:may_hang"
        pool = [stack.enter_context(closing(VerificationWorker(verifier, TIMEOUT_S))) for _ in range(workers)]
        started = time.perf_counter()

        def work(worker: VerificationWorker) -> int:
            good = 0
            while True:
                with lock:
                    number = next(numbers)
                if rate is not None:
                    time.sleep(max(0.0, started + number * GROUP / rate - time.perf_counter()))
                statuses = list(through_worker(worker, [groups[number]]))
                if time.perf_counter() - started > seconds:
                    return good
                good += sum(status is not Status.TIMEOUT for status in statuses)

        with ThreadPoolExecutor(workers * GROUPS_AT_A_TIME) as threads:
            return sum(threads.map(work, pool * GROUPS_AT_A_TIME)) / seconds


def beside(workers: int, seconds: float) -> list[dict[str, Any]]:
    """Good answers a second without and beside hanging ones."""
    most = good_per_s(workers, seconds, None)
    rows = []
    for offered, rate in (("as fast as possible", None), ("at half the rate", most / 2)):
        alone = most if rate is None else good_per_s(workers, seconds, None, rate)
        for every in BESIDE_EVERY:
            found = good_per_s(workers, seconds, every, rate)
            row = {"workers": workers, "offered": offered, "one_hangs_in": every, "good_per_s_alone": alone}
            rows.append({**row, "good_per_s": found, "fall": 1 - found / alone})
    return rows


def summary(speeds: Sequence[Speed]) -> list[dict[str, Any]]:
    """Medians of each way and kind of answers."""
    rows = []
    for way, answers in dict.fromkeys((speed.way, speed.answers) for speed in speeds):
        own = [speed for speed in speeds if (speed.way, speed.answers) == (way, answers)]
        rows.append(
            {
                "way": way,
                "answers": answers,
                "checks_per_s": statistics.median(one.checks / one.seconds for one in own),
                "checks_per_core_s": statistics.median(one.checks / one.core_seconds for one in own),
                "timeouts": own[0].timeouts,
                "checks": own[0].checks,
            }
        )
    plain = {row["answers"]: row["checks_per_core_s"] for row in rows if row["way"].startswith("bare")}
    for row in rows:
        beside = plain.get(row["answers"])
        row["ratio_to_bare"] = row["checks_per_core_s"] / beside if beside else None
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checks", type=int, default=1500, help="responses of each way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4, help="of the second table")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each figure of the second table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures to this file")
    options = parser.parse_args()
    rows = summary(measure(options.checks, options.rounds))
    print("| way | answers | checks/s | checks/core-second | ratio to bare | timeouts |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        ratio = "-" if row["ratio_to_bare"] is None else f"{row['ratio_to_bare']:.2f}"
        print(
            f"| {row['way']} | {row['answers']} | {row['checks_per_s']:.0f} | {row['checks_per_core_s']:.0f} "
            f"| {ratio} | {row['timeouts']} of {row['checks']} |"
        )
    beside_rows = beside(options.workers, options.seconds)
    print(f"\n| {options.workers} workers | one hangs in | good/s alone | good/s beside | fall |")
    print("|---|---|---|---|---|")
    for row in beside_rows:
        print(
            f"| {row['offered']} | {row['one_hangs_in']} | {row['good_per_s_alone']:.0f} "
            f"| {row['good_per_s']:.0f} | {row['fall']:.0%} |"
        )
    ways = {"ways": rows, "beside": beside_rows}
    line = json.dumps({"benchmark": "verify", "rounds": options.rounds, **ways})
    print(line)
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
