"""The score of a sample: by the model's own card, or by the settings of a baseline."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.evaluation.samples import EvalSample
from orchestrator.pools.evaluation import EvalPools
from orchestrator.pools.events import finished


@dataclass(frozen=True)
class ScoreRule:
    """How log pi(z_c) becomes a score."""

    token: str
    token_id: int
    c_ref: float | None
    """log pi_ref(z_c); None until it is measured over all samples (see `measured`)."""
    beta_v: float
    origin: str
    """Shown to the user: trained, or baseline."""

    def of(self, z_logprob: float) -> float:
        """beta_v * (z_logprob - c_ref); NaN where that is not finite, and while `c_ref` is None."""
        if self.c_ref is None or not math.isfinite(z_logprob):
            return math.nan
        return self.beta_v * (z_logprob - self.c_ref)

    def measured(self, samples: Iterable[EvalSample]) -> "ScoreRule":
        """This rule with a `c_ref`: the mean log pi(z_c) of the finished samples, unless it has one."""
        found = [sample.z_logprob for sample in samples if math.isfinite(sample.z_logprob)]
        if self.c_ref is not None or not found:
            return self
        return replace(self, c_ref=math.fsum(found) / len(found))


def rescore(
    pools: EvalPools,
    samples: Sequence[EvalSample],
    token_ids: Mapping[tuple[str, str, int], Sequence[int]],
    score: ScoreRule,
    advance: Callable[[int], None],
) -> list[EvalSample]:
    """Stored samples with the scores of the model in the engines.

    Args:
        token_ids: Prompt and response of each finished sample, by set, problem and number.
        advance: Called with 1 after each scored sample.

    Raises:
        PoolError: The engines died too often.
    """
    rescored = [
        replace(sample, z_logprob=math.nan, score=math.nan) for sample in samples if not sample.finished
    ]
    for sample in samples:
        if sample.finished:
            key = (sample.set, sample.problem_id, sample.sample)
            pools.rollouts.submit("score", token_ids[key], context=sample)
    for _, task, z_logprob in finished(pools.rollouts):
        rescored.append(replace(task.context, z_logprob=z_logprob, score=score.of(z_logprob)))
        advance(1)
    return rescored
