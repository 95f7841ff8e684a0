"""The score of a sample, by the model's own card or by given settings."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.evaluation.samples import Sample
from orchestrator.pools.evaluation import EvalPools
from orchestrator.pools.pool import finished


@dataclass(frozen=True)
class Score:
    """How log pi(z_c) becomes a score. `c_ref` None is measured when all samples are there."""

    token: str
    token_id: int
    c_ref: float | None
    beta_v: float
    origin: str
    """For a person: trained, or a baseline."""

    def of(self, z_logprob: float) -> float:
        """NaN for an unfinished sample, and while `c_ref` is not known."""
        return math.nan if self.c_ref is None else self.beta_v * (z_logprob - self.c_ref)

    def measured(self, samples: Iterable[Sample]) -> "Score":
        """With `c_ref`: the mean log pi(z_c) of the finished samples, unless it is given."""
        found = [sample.z_logprob for sample in samples if not math.isnan(sample.z_logprob)]
        if self.c_ref is not None or not found:
            return self
        return replace(self, c_ref=math.fsum(found) / len(found))


def rescore(
    pools: EvalPools,
    samples: Sequence[Sample],
    token_ids: Mapping[tuple[str, str, int], Sequence[int]],
    score: Score,
    advance: Callable[[int], None],
) -> list[Sample]:
    """Stored samples as another model scores them; `token_ids` are prompt and response of the finished ones, by set, problem and number."""
    rescored = [
        replace(sample, z_logprob=math.nan, score=math.nan) for sample in samples if not sample.finished
    ]
    for sample in samples:
        if sample.finished:
            pools.rollouts.submit(
                "score", token_ids[sample.set, sample.problem_id, sample.sample], context=sample
            )
    for _, task, z_logprob in finished(pools.rollouts):
        rescored.append(replace(task.context, z_logprob=z_logprob, score=score.of(z_logprob)))
        advance(1)
    return rescored
