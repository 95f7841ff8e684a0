"""From problems to checked samples on disk, on the pools of an evaluation.

In: problem sets and what is drawn already. Out: every sample with its verdict, its answer's class and log pi(z_c). Samples go to the file
as their part of a problem ends.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import ray

from orchestrator.data.problems import Problem
from orchestrator.data.prompts import PromptSet
from orchestrator.evaluation.samples import Sample, SampleFile, by_problem, problem_seed
from orchestrator.evaluation.scores import Score
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.trajectories import GroupSummary
from orchestrator.messages.verdicts import Verdict
from orchestrator.pools.evaluation import EvalPools
from orchestrator.pools.pool import finished

SAMPLES_PER_REQUEST = 8
"""A problem's samples are drawn in parts of so many, so that few are lost with a killed process."""


@dataclass(frozen=True)
class ProblemSet:
    """A set that is evaluated."""

    name: str
    prompts: PromptSet
    samples_per_problem: int


@dataclass(frozen=True, eq=False)
class _Part:
    """Samples `first` to `first + count - 1` of a problem."""

    set: ProblemSet
    index: int
    """Of the problem in its set."""
    first: int
    count: int
    seed: int
    """Of the first of these samples."""

    @property
    def problem(self) -> Problem:
        return self.set.prompts.problems[self.index]


def missing(sets: Sequence[ProblemSet], drawn: Iterable[Sample]) -> int:
    """Samples that are still to be drawn."""
    return sum(problem_set.samples_per_problem * len(problem_set.prompts) for problem_set in sets) - len(
        list(drawn)
    )


def draw(
    pools: EvalPools,
    sets: Sequence[ProblemSet],
    file: SampleFile,
    seed: int,
    temperature: float,
    score: Score | None,
    advance: Callable[[int], None],
) -> None:
    """Draw and check what `file` does not hold yet; `advance` is told how many samples it has got."""
    for part in _parts(sets, file.samples, seed):
        request = GroupRequest(part.set.prompts.token_ids(part.index), part.count, part.seed, temperature)
        pools.rollouts.submit("generate", request, num_returns=3, context=part)
    generated: dict[_Part, tuple[list[str], GroupSummary]] = {}
    for pool, task, value in finished(pools.rollouts, pools.verifiers):
        part = task.context
        if pool is pools.rollouts:
            generated[part] = ray.get(task.refs[1]), value
            pools.verifiers.submit(
                "verify", task.refs[1], value.finished.tolist(), part.problem.answer, context=part
            )
        else:
            samples = list(_samples(part, *generated.pop(part), value, score))
            file.append(samples)
            advance(len(samples))


def verify(pools: EvalPools, samples: Sequence[Sample], advance: Callable[[int], None]) -> list[Sample]:
    """Stored samples with new verdicts."""
    for group in by_problem(samples).values():
        texts, ended = [sample.response for sample in group], [sample.finished for sample in group]
        pools.verifiers.submit("verify", texts, ended, group[0].reference, context=group)
    checked = []
    for _, task, verdicts in finished(pools.verifiers):
        checked += [
            replace(sample, status=str(verdict.status), answer=verdict.answer, answer_class=None)
            for sample, verdict in zip(task.context, verdicts, strict=True)
        ]
        advance(len(verdicts))
    return checked


def pool_answers(pools: EvalPools, samples: Sequence[Sample]) -> list[Sample]:
    """Samples with their answers' classes; equal answers to a problem are found by math-verify, where text does not tell."""
    pooled: list[Sample] = []
    for group in by_problem(samples).values():
        wrong = [sample.answer for sample in group if sample.has_vote and not sample.correct]
        if len(set(wrong)) > 1:
            pools.verifiers.submit("pool_answers", wrong, context=group)
        else:
            pooled += _classed(group, [0] * len(wrong))
    for _, task, classes in finished(pools.verifiers):
        pooled += _classed(task.context, classes)
    return pooled


def _classed(group: Sequence[Sample], wrong_classes: Sequence[int]) -> Iterator[Sample]:
    """Class 0 is the reference's, whether or not a sample gives it; those of wrong answers follow."""
    classes = iter(wrong_classes)
    for sample in group:
        yield replace(
            sample, answer_class=(0 if sample.correct else 1 + next(classes)) if sample.has_vote else None
        )


def _parts(sets: Sequence[ProblemSet], drawn: Iterable[Sample], seed: int) -> Iterator[_Part]:
    """What is not drawn yet, in requests of consecutive samples."""
    there = {key: {sample.sample for sample in group} for key, group in by_problem(drawn).items()}
    for problem_set in sets:
        for index, problem in enumerate(problem_set.prompts.problems):
            first_seed = problem_seed(seed, problem_set.name, problem.id)
            done = there.get((problem_set.name, problem.id), set())
            left = [number for number in range(problem_set.samples_per_problem) if number not in done]
            while left:
                count = 1
                while count < min(len(left), SAMPLES_PER_REQUEST) and left[count] == left[0] + count:
                    count += 1
                yield _Part(problem_set, index, left[0], count, first_seed + left[0])
                left = left[count:]


def _samples(
    part: _Part, texts: Sequence[str], summary: GroupSummary, verdicts: Sequence[Verdict], score: Score | None
) -> Iterator[Sample]:
    problem = part.problem
    for index, (text, verdict) in enumerate(zip(texts, verdicts, strict=True)):
        z_logprob = float(summary.z_logprobs[index])
        yield Sample(
            set=part.set.name,
            problem_id=problem.id,
            problem=problem.text,
            reference=problem.answer,
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
        )
