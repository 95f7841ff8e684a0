"""From problems to checked samples on disk, with the pools of an evaluation.

In: problem sets and the samples drawn so far. Out: every sample with its verdict, log pi(z_c) and, after
pooling, the class of its answer. A request's samples are written to the file as soon as they are checked.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.cluster.waits import fetched
from orchestrator.data.prompts import ProblemSet
from orchestrator.evaluation.answers import NO_VOTE, pool_answers
from orchestrator.evaluation.samples import EvalSample, SampleFile, by_problem, problem_seed
from orchestrator.evaluation.scores import ScoreRule
from orchestrator.messages.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.trajectories import GroupSummary
from orchestrator.messages.verdicts import Verdict
from orchestrator.pools.evaluation import EvalPools
from orchestrator.pools.events import finished
from orchestrator.pools.pool import Pool

SAMPLES_PER_REQUEST = 8
"""Samples of a problem in one request; a killed process loses at most these of a problem."""


@dataclass(frozen=True, eq=False)
class ProblemPart:
    """Samples `first` to `first + count - 1` of a problem."""

    set: ProblemSet
    index: int
    """Of the problem in its set."""
    first: int
    count: int
    seed: int
    """Of the first of these samples; the next ones count up."""

    @property
    def problem(self) -> Problem:
        """The problem that the samples solve."""
        return self.set.prompts.problems[self.index]


def missing_parts(
    sets: Sequence[ProblemSet], drawn: Iterable[EvalSample], seed: int
) -> Iterator[ProblemPart]:
    """The samples that are not drawn yet, as consecutive samples of at most SAMPLES_PER_REQUEST.

    Args:
        seed: Of the evaluation. A sample has the same seed in whatever part it is.
    """
    drawn_numbers = {key: {sample.sample for sample in group} for key, group in by_problem(drawn).items()}
    for problem_set in sets:
        for index, problem in enumerate(problem_set.prompts.problems):
            first_seed = problem_seed(seed, problem_set.name, problem.id)
            done = drawn_numbers.get((problem_set.name, problem.id), set())
            left = [number for number in range(problem_set.samples_per_problem) if number not in done]
            while left:
                count = 1
                while count < min(len(left), SAMPLES_PER_REQUEST) and left[count] == left[0] + count:
                    count += 1
                yield ProblemPart(problem_set, index, left[0], count, first_seed + left[0])
                left = left[count:]


def draw(
    pools: EvalPools,
    parts: Iterable[ProblemPart],
    file: SampleFile,
    temperature: float,
    score: ScoreRule | None,
    advance: Callable[[int], None],
) -> None:
    """Draw and check samples, and append them to `file`.

    Args:
        advance: Called with the number of new samples after each append.

    Raises:
        RunError: The file cannot be written.
        PoolError: Engines or verifiers died too often.
    """
    for part in parts:
        request = GroupRequest(part.set.prompts.token_ids(part.index), part.count, part.seed, temperature)
        pools.rollouts.submit("generate", request, num_returns=3, context=part)
    generated: dict[ProblemPart, tuple[list[str], GroupSummary]] = {}
    for pool, task, value in finished(pools.rollouts, pools.verifiers):
        part = task.context
        if pool is pools.rollouts:
            texts, ended = task.refs[1], value.finished.tolist()
            generated[part] = fetched(texts, f"the responses to problem {part.problem.id}"), value
            pools.verifiers.submit("verify", texts, ended, part.problem, context=part)
        else:
            samples = list(_samples(part, *generated.pop(part), value, score))
            file.append(samples)
            advance(len(samples))


def verify(
    verifiers: Pool,
    samples: Sequence[EvalSample],
    advance: Callable[[int], None],
    answer_after: str = "",
) -> list[EvalSample]:
    """Stored samples with new verdicts, and without the classes of their answers.

    Args:
        answer_after: The verifier sees what follows this text in a response; empty for all of it.
        advance: Called with the number of samples after each checked problem.

    Raises:
        PoolError: The verifiers died too often.
    """
    for group in by_problem(samples).values():
        texts, ended = [sample.response for sample in group], [sample.finished for sample in group]
        verifiers.submit("verify", texts, ended, group[0].asked(answer_after), context=group)
    checked = []
    for _, task, verdicts in finished(verifiers):
        checked += [
            replace(
                sample,
                status=str(verdict.status),
                answer=verdict.answer,
                answer_class=None,
                detail=verdict.detail,
                reward=verdict.reward,
                parts=dict(verdict.parts),
            )
            for sample, verdict in zip(task.context, verdicts, strict=True)
        ]
        advance(len(verdicts))
    return checked


def classify(verifiers: Pool, samples: Sequence[EvalSample], verifier: str) -> list[EvalSample]:
    """Samples with the classes of their answers (see `pool_answers`).

    Args:
        verifier: Canonical text of their verifier.

    Raises:
        PoolError: The verifiers died too often.
    """
    groups = list(by_problem(samples).values())
    return [
        replace(sample, answer_class=None if number == NO_VOTE else number)
        for group, numbers in zip(
            groups, pool_answers(verifiers, groups, [verifier] * len(groups)), strict=True
        )
        for sample, number in zip(group, numbers, strict=True)
    ]


def _samples(
    part: ProblemPart,
    texts: Sequence[str],
    summary: GroupSummary,
    verdicts: Sequence[Verdict],
    score: ScoreRule | None,
) -> Iterator[EvalSample]:
    problem = part.problem
    for index, (text, verdict) in enumerate(zip(texts, verdicts, strict=True)):
        z_logprob = float(summary.z_logprobs[index])
        yield EvalSample(
            set=part.set.name,
            problem_id=problem.id,
            problem=problem.text,
            reference=problem.reference,
            kind=problem.kind,
            sample=part.first + index,
            seed=part.seed + index,
            response=text,
            tokens=int(summary.lengths[index]),
            finished=bool(summary.finished[index]),
            status=str(verdict.status),
            answer=verdict.answer,
            answer_class=None,
            z_logprob=z_logprob,
            score=math.nan if score is None else score.of(z_logprob),
            detail=verdict.detail,
            reward=verdict.reward,
            parts=dict(verdict.parts),
            messages=[*problem.messages] if problem.messages[1:] else None,
            fields=dict(problem.fields) or None,
        )
