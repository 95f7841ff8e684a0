"""Adaptive sampling: draw solutions of a problem until its vote is settled or the budget is spent.

`AdaptiveVote` takes answers and self-rewards one by one, for a service. `accuracy_against_tokens` replays
stored samples in random orders. Both give the vote's result and its cost in samples and tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betainc

from orchestrator.algorithm.voting import (
    ProblemSamples,
    fair_winner,
    majority_vote,
    pooled_votes,
    powers_of_two,
    vote_weights,
)

CONFIDENCES = (0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)
"""Below 0.75 one high score can end the sampling: P(p > 1/2) is 0.75 after a single vote of weight 1."""


@dataclass(frozen=True)
class StopRule:
    """When to stop: at `confidence` that the leading answer beats the second one.

    It never stops before `min_samples`, and always at `max_samples`. A `weighted` rule counts scores clipped
    to [0, 1], a plain one 1 for each sample; the Beta criterion reads the sums as counts (see `settled`).
    docs/evaluation.md compares this with log-odds of the scores as evidence.

    Raises:
        ValueError: Not 0.5 < confidence <= 1, or not 1 <= min_samples <= max_samples.
    """

    confidence: float
    min_samples: int
    max_samples: int
    weighted: bool = True

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence <= 1:
            raise ValueError(
                f"confidence is {self.confidence}; "
                "it must be above 0.5, which is the confidence of a tie, and at most 1"
            )
        if not 1 <= self.min_samples <= self.max_samples:
            raise ValueError(
                f"min_samples is {self.min_samples} and max_samples {self.max_samples}; "
                "1 <= min_samples <= max_samples must hold"
            )


def settled(votes_by_class: Sequence[float], samples: int, rule: StopRule) -> bool:
    """Whether to stop after `samples` samples with these sums of votes.

    Let v1 and v2 be the two largest sums, and p ~ Beta(v1 + 1, v2 + 1) the leader's share of the two. Stop
    when P(p > 1/2) reaches `rule.confidence`, or when the remaining samples, with at most one vote each,
    cannot change the winner. Source: the Beta stopping criterion of Adaptive-Consistency, Aggarwal et al.
    (arXiv 2305.11860).

    Args:
        votes_by_class: Sum of votes of each answer.
        samples: All samples drawn so far, those without a vote included.
    """
    first, second = sorted([*votes_by_class, 0.0, 0.0], reverse=True)[:2]
    return bool(
        _settled(
            _confidence(np.array(first), np.array(second)), np.array(first - second), np.array(samples), rule
        )
    )


@dataclass
class AdaptiveVote:
    """The vote on one problem while its samples arrive.

    Attributes:
        samples: Samples so far.
        tokens: Their response tokens.
    """

    rule: StopRule
    samples: int = 0
    tokens: int = 0
    _answers: list[int] = field(default_factory=list)
    _weights: list[float] = field(default_factory=list)

    def add(self, answer: int, score: float, tokens: int) -> None:
        """Count a sample.

        Args:
            answer: Class of its answer; -1 for no vote.
            score: Its self-reward; NaN when unfinished.
            tokens: Its response tokens.
        """
        self.samples += 1
        self.tokens += tokens
        self._answers.append(answer)
        self._weights.append(float(vote_weights(np.array(score))) if self.rule.weighted else 1.0)

    @property
    def votes(self) -> dict[int, float]:
        """Sum of votes of each answer so far, in the order in which the answers were first seen."""
        return pooled_votes(self._answers, self._weights)

    @property
    def settled(self) -> bool:
        """Whether to draw no further sample."""
        return settled(list(self.votes.values()), self.samples, self.rule)

    @property
    def winner(self) -> int | None:
        """The winner so far (see `majority_vote`); None while there is no vote."""
        return majority_vote(self._answers, self._weights)


@dataclass(frozen=True)
class CostPoint:
    """Accuracy and cost of a rule: means over problems, and for each over the same orders of its samples."""

    rule: str
    """majority or weighted (a fixed number of samples), adaptive (weighted votes), or adaptive majority."""
    parameter: float
    """The number of samples of a fixed rule, the confidence of an adaptive one."""
    accuracy: float
    standard_error: float
    """Of the accuracy, over problems; NaN for a single problem."""
    tokens: float
    """Response tokens per problem."""
    samples: float
    """Samples per problem."""
    accuracy_by_problem: Float[np.ndarray, "problems"] = field(compare=False, repr=False)
    tokens_by_problem: Float[np.ndarray, "problems"] = field(compare=False, repr=False)
    """All rules see the same orders, so `metrics.paired_difference` compares two rules."""


def accuracy_against_tokens(
    problems: Sequence[ProblemSamples],
    rules: Sequence[StopRule] | None = None,
    seed: int = 0,
    draws: int = 100,
) -> list[CostPoint]:
    """Replay stored samples in random orders, under votes over the first k samples and under stop rules.

    The votes are plain and, where there are scores, weighted; k takes the powers of two up to the fewest
    samples of any problem. Tied answers share the win.

    Args:
        rules: Stop rules; unless given, one for each of `CONFIDENCES`, with a budget of the fewest samples of
            any problem, and weighted where there are scores.
        draws: Orders of each problem.

    Raises:
        ValueError: There are no problems or no tokens, some problems have scores and others none, or a rule
            is weighted without scores or draws more samples than there are.
    """
    if not problems or any(samples.tokens is None for samples in problems):
        raise ValueError(
            "accuracy against tokens needs problems with the tokens of their samples; "
            f"there are {len(problems)} problems"
        )
    scored = problems[0].scores is not None
    if any((samples.scores is not None) != scored for samples in problems):
        raise ValueError("some problems have scores and others none: replay the two kinds separately")
    fewest = min(len(samples) for samples in problems)
    if rules is None:
        rules = [StopRule(confidence, 1, fewest, weighted=scored) for confidence in CONFIDENCES]
    for rule in rules:
        if rule.max_samples > fewest or (rule.weighted and not scored):
            raise ValueError(
                f"{rule} needs {rule.max_samples} samples a problem, and scores where weighted; "
                f"a problem has {fewest}"
            )

    fixed = [("majority", k) for k in powers_of_two(fewest)] + [
        ("weighted", k) for k in powers_of_two(fewest) if scored
    ]
    named = [
        *fixed,
        *(("adaptive" if rule.weighted else "adaptive majority", rule.confidence) for rule in rules),
    ]
    replayed = np.empty((3, len(named), len(problems)))
    rng = np.random.default_rng(seed)
    for number, samples in enumerate(problems):
        # No rule draws more than the first `fewest` samples of an order.
        orders = rng.permuted(np.tile(np.arange(len(samples)), (draws, 1)), axis=1)[:, :fewest]
        replays = {
            weighted: _Replay.of(samples, orders, weighted)
            for weighted in ((False, True) if scored else (False,))
        }
        outcomes = [replays[name == "weighted"].after(np.full(draws, k)) for name, k in fixed]
        outcomes += [replays[rule.weighted].after(replays[rule.weighted].stops(rule)) for rule in rules]
        replayed[:, :, number] = np.transpose(outcomes)
    return [_cost_point(name, parameter, *replayed[:, row]) for row, (name, parameter) in enumerate(named)]


@dataclass(frozen=True)
class _Replay:
    """A vote on one problem after each sample of each order."""

    confidence: Float[np.ndarray, "draws samples"]
    lead: Float[np.ndarray, "draws samples"]
    right: Float[np.ndarray, "draws samples"]
    tokens: Int[np.ndarray, "draws samples"]

    @classmethod
    def of(
        cls, samples: ProblemSamples, orders: Int[np.ndarray, "draws samples"], weighted: bool
    ) -> "_Replay":
        members, correctness = samples.classes()
        weights = samples.weights if weighted else np.ones(len(samples))
        votes = (members * weights[:, None])[orders].cumsum(axis=1)
        second, first = np.moveaxis(
            np.partition(np.pad(votes, ((0, 0), (0, 0), (2, 0))), -2, axis=2)[:, :, -2:], 2, 0
        )
        right = fair_winner(votes, members[orders].cumsum(axis=1) > 0, correctness)
        return cls(
            _confidence(first, second),
            first - second,
            right,
            np.asarray(samples.tokens)[orders].cumsum(axis=1),
        )

    def stops(self, rule: StopRule) -> Int[np.ndarray, "draws"]:
        """Number of samples that the rule draws in each order."""
        return 1 + _settled(self.confidence, self.lead, np.arange(1, self.lead.shape[1] + 1), rule).argmax(
            axis=1
        )

    def after(self, samples: Int[np.ndarray, "draws"]) -> tuple[float, float, float]:
        """Mean correctness, tokens and samples when each order stops after its number of samples."""
        last = (np.arange(len(samples)), samples - 1)
        return float(self.right[last].mean()), float(self.tokens[last].mean()), float(samples.mean())


def _confidence(
    first: Float[np.ndarray, "*shape"], second: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """P(p > 1/2) under Beta(first + 1, second + 1)."""
    # I_1/2(b, a) = 1 - I_1/2(a, b), without the loss of digits near 1.
    return betainc(second + 1, first + 1, 0.5)


def _settled(
    confidence: Float[np.ndarray, "*shape"],
    lead: Float[np.ndarray, "*shape"],
    samples: Int[np.ndarray, "*#shape"],
    rule: StopRule,
) -> Bool[np.ndarray, "*shape"]:
    decided = lead > rule.max_samples - samples
    return (samples >= rule.min_samples) & (
        (confidence >= rule.confidence) | decided | (samples >= rule.max_samples)
    )


def _cost_point(
    rule: str,
    parameter: float,
    accuracy: Float[np.ndarray, "problems"],
    tokens: Float[np.ndarray, "problems"],
    samples: Float[np.ndarray, "problems"],
) -> CostPoint:
    error = float(accuracy.std(ddof=1) / math.sqrt(len(accuracy))) if len(accuracy) > 1 else math.nan
    return CostPoint(
        rule,
        parameter,
        float(accuracy.mean()),
        error,
        float(tokens.mean()),
        float(samples.mean()),
        accuracy,
        tokens,
    )
