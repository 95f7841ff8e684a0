"""`laser verify --responses`: a verifier on stored answers, before a GPU is rented.

In: problems, a file of responses, a verifier. Out: a verdict for each response, with counts, rewards, checks
a second, and what was slow. It starts workers in this process, without Ray.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.budget import BudgetShare
from actors.checking import runs_many
from actors.verification import VerificationWorker
from orchestrator.config.schema import validate
from orchestrator.config.sources import SourceConfig
from orchestrator.config.texts import parse_yaml
from orchestrator.config.verification import VerificationConfig
from orchestrator.data.problems import ProblemSource
from orchestrator.data.rows import open_rows, read_rows
from orchestrator.data.texts import Row
from orchestrator.errors import ConfigError, DataError
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import UNJUDGED, Verdict
from orchestrator.planning.references import check_references, report_lines
from orchestrator.terminal import say_line

SHOWN_CHECKS = 5
"""Slow checks, and failed ones, that the report lists."""
GROUPS_AT_ONCE = 16
"""Problems that one worker checks at a time where its verifier waits for a network."""


@dataclass(frozen=True)
class JudgedResponse:
    """A stored response and its verdict."""

    problem: Problem
    response: str
    verdict: Verdict

    def line(self) -> str:
        """As a line of JSON."""
        verdict = self.verdict
        tree = {
            "problem_id": self.problem.id,
            "status": str(verdict.status),
            "reward": verdict.reward,
            "parts": dict(verdict.parts),
            "answer": verdict.answer,
            "seconds": verdict.seconds,
            "detail": verdict.detail,
            "response": self.response,
        }
        return json.dumps(tree, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class JudgedResponses:
    """The verdicts on a file of responses."""

    judged: list[JudgedResponse]
    seconds: float
    """From the first check to the last verdict; the start of the workers does not count."""
    verifier: str

    @property
    def complete(self) -> bool:
        """Whether every response has a verdict."""
        return all(one.verdict.status not in UNJUDGED for one in self.judged)


def read_responses(path: Path, problems: Sequence[Problem]) -> Iterator[tuple[Problem, list[str]]]:
    """The responses to each problem.

    A row has `response`, a text, or `responses`, a list, and the problem's id as `problem_id` or `id`. Where
    no row has an id, the first row answers the first problem, and so on.

    Raises:
        DataError: The file cannot be read, a row has no response or names no problem, or the rows without ids
            are more or fewer than the problems.
    """
    by_id = {problem.id: problem for problem in problems}

    stored = open_rows(str(path))

    def read(row: Row, number: int) -> tuple[str | None, list[str]]:
        where = "{}, line {}".format(*stored.place(number))
        found = row.get("responses", row.get("response"))
        texts = [found] if isinstance(found, str) else found
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: needs 'response', a text, or 'responses', a list of texts")
        id_ = row.get("problem_id", row.get("id"))
        if id_ is not None and str(id_) not in by_id:
            raise DataError(f"{where}: no problem of the data has the id {id_!r}")
        return None if id_ is None else str(id_), texts

    rows = list(read_rows(stored, read))
    if any(id_ is not None for id_, _ in rows):
        if any(id_ is None for id_, _ in rows):
            raise DataError(f"{path}: some rows name their problem ('problem_id') and others do not")
        grouped: dict[str, list[str]] = {}
        for id_, texts in rows:
            grouped.setdefault(str(id_), []).extend(texts)
        yield from ((by_id[id_], texts) for id_, texts in grouped.items())
        return
    if len(rows) != len(problems):
        raise DataError(
            f"{path}: has {len(rows)} rows without a problem's id, but the data has {len(problems)} "
            "problems; give each row 'problem_id'"
        )
    yield from ((problem, texts) for problem, (_, texts) in zip(problems, rows, strict=True))


def judge_responses(
    data: str, responses: Path, fields: tuple[str, str], split: str, settings: VerificationConfig
) -> JudgedResponses:
    """Run a verifier on the stored responses to the problems of `data`.

    Args:
        fields: Those of problem and reference.

    Raises:
        ConfigError: The verifier cannot be used.
        DataError: Problems or responses cannot be read.
    """
    source = SourceConfig(path=data).filled(split, *fields, verification=settings)
    problems = list(ProblemSource(source, "data"))
    groups = list(read_responses(responses, problems))
    texts = [*settings.verifier_texts, *(problem.verifier for problem, _ in groups if problem.verifier)]
    others = list(dict.fromkeys(texts))[1:]
    at_once = GROUPS_AT_ONCE if any(map(runs_many, {texts[0], *others})) else 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="laser-budget-")))
        workers = [
            stack.enter_context(
                closing(
                    VerificationWorker(
                        texts[0],
                        settings.timeout_s,
                        others=others,
                        share=BudgetShare(folder, index, settings.num_workers),
                        memory_mib=settings.memory_mib,
                    )
                )
            )
            for index in range(settings.num_workers)
        ]
        threads = stack.enter_context(ThreadPoolExecutor(at_once * len(workers)))

        def check(number: int) -> list[Verdict]:
            problem, found = groups[number]
            return workers[number % len(workers)].verify(found, [True] * len(found), problem)

        started = time.perf_counter()
        verdicts = list(threads.map(check, range(len(groups))))
        seconds = time.perf_counter() - started
    judged = [
        JudgedResponse(problem, text, verdict)
        for (problem, found), each in zip(groups, verdicts, strict=True)
        for text, verdict in zip(found, each, strict=True)
    ]
    return JudgedResponses(judged, seconds, settings.verifier_name)


def response_lines(found: JudgedResponses) -> list[str]:
    """The outcome as lines of text."""
    verdicts = [one.verdict for one in found.judged]
    if not verdicts:
        return ["the file holds no response"]
    counts = Counter(str(verdict.status) for verdict in verdicts)
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    own = [one for one in found.judged if one.verdict.seconds is not None]
    lines = [
        f"{len(verdicts)} responses by {found.verifier}: "
        + ", ".join(f"{count} {status}" for status, count in counts.most_common()),
    ]
    if rewards:
        lines.append(f"mean reward {np.mean(rewards):.4f} over {len(rewards)} that were judged")
    parts: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, value in verdict.parts.items():
            parts.setdefault(name, []).append(value)
    lines += [f"  part {name}: mean {np.mean(values):.4f}" for name, values in sorted(parts.items())]
    rate = len(own) / found.seconds if found.seconds else 0.0
    lines.append(f"{len(own)} checks in {found.seconds:.2f} s: {rate:.1f} checks/s; others shared a check")
    if own:
        seconds = np.array([one.verdict.seconds for one in own], float)
        middle, high = np.quantile(seconds, [0.5, 0.95])
        lines.append(f"seconds a check: median {middle:.4f}, 95 % {high:.4f}, longest {seconds.max():.4f}")
        slowest = sorted(own, key=lambda one: -(one.verdict.seconds or 0.0))[:SHOWN_CHECKS]
        lines += ["slowest:", *(f"  {_brief(one)}" for one in slowest)]
    failed = [one for one in found.judged if one.verdict.status in UNJUDGED]
    if failed:
        lines += ["not judged:", *(f"  {_brief(one)}" for one in failed[:SHOWN_CHECKS])]
    return lines


def _brief(one: JudgedResponse) -> str:
    verdict = one.verdict
    detail = " ".join(verdict.detail.split())
    seconds = "" if verdict.seconds is None else f" {verdict.seconds:.3f} s"
    return f"{one.problem.id}:{seconds} {verdict.status}" + (f": {detail[:150]}" if detail else "")


def verify_command(options: argparse.Namespace) -> int:
    """The command `laser verify`: references that are not read, or verdicts on `--responses`.

    Returns:
        The exit status: 1 where a reference is not read, or a response not judged.

    Raises:
        ConfigError, DataError: As `judge_responses`, or the output cannot be written.
    """
    fields = (options.problem_field, options.answer_field)
    if options.responses is None:
        references = check_references(options.data, *fields, options.split)
        say_line("\n".join(report_lines(references)))
        return 1 if references.unread else 0
    tree = {"verifier": parse_yaml(options.verifier, "--verifier"), "num_workers": options.workers}
    settings = validate(tree, VerificationConfig, "laser verify")
    found = judge_responses(options.data, options.responses, fields, options.split, settings)
    if options.output is not None:
        try:
            options.output.write_text("".join(one.line() for one in found.judged), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--output: {options.output} cannot be written ({error.strerror})") from error
    say_line("\n".join(response_lines(found)))
    return 0 if found.complete else 1
