"""The rules by which a run's numbers are healthy: the only place that decides.

In: the metrics of each step, in order. Out: which rules are broken, as metrics `health/<rule>`, which panel,
MLflow, report and Prometheus show.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rule:
    """A bound for the mean of a metric over some steps.

    Attributes:
        name: Of the rule; its threshold is the setting `health.<name>`.
        metric: The metric of a step that it watches.
        bound: What is broken: `below` or `above` the threshold; `fallen` below this share of the largest mean
            so far, or `shrunk` below this share of the first; `grown` above this multiple of the first.
        advice: What it means and what to do.
    """

    name: str
    metric: str
    bound: Literal["below", "above", "fallen", "shrunk", "grown"]
    advice: str

    @property
    def key(self) -> str:
        """The metric that says whether it is broken: 1 or 0."""
        return f"health/{self.name}"


RULES = (
    Rule("accuracy", "train/accuracy", "fallen", "lower learning.lr, and go back to an earlier checkpoint"),
    Rule("entropy", "policy/entropy", "below", "the policy no longer explores: lower learning.lr"),
    Rule("length", "train/response_tokens", "shrunk", "look at the responses (run.save_rollouts_every)"),
    Rule(
        "score",
        "self_reward/score_wrong",
        "above",
        "wrong solutions score high, so the score tells nothing: look at loss.alpha and at the verdicts",
    ),
    Rule(
        "z_mass",
        "self_reward/z_mass",
        "above",
        "the model wants z_c within its text, where the engine bars it: choose another self_reward.token, or "
        "lower loss.alpha",
    ),
    Rule(
        "mismatch",
        "policy/mismatch_kl",
        "grown",
        "the engine samples from another distribution than the learner's: raise rollout.dtype, or set "
        "loss.importance_cap",
    ),
)
SMALLEST_MISMATCH = 1e-3
"""Nats: rounding alone grows by large factors far below it."""


class Health:
    """Judges step after step.

    Args:
        thresholds: By the rules' names; a rule whose threshold is None or missing is off.
        window: Steps whose mean is judged. A rule is kept until it has so many values.

    Attributes:
        broken: The rules that are broken now, with the reason in words.
        said: Those that the user knows to be broken.
    """

    def __init__(self, thresholds: Mapping[str, float | None], window: int) -> None:
        self.thresholds = {
            rule: threshold for rule in RULES if (threshold := thresholds.get(rule.name)) is not None
        }
        self.values: dict[Rule, deque[float]] = {rule: deque(maxlen=window) for rule in self.thresholds}
        self.first: dict[Rule, float] = {}
        self.largest: dict[Rule, float] = {}
        self.broken: dict[Rule, str] = {}
        self.said: set[Rule] = set()

    def replay(self, steps: Iterable[Mapping[str, float]]) -> None:
        """Judge steps of an earlier session of the run."""
        for metrics in steps:
            self.judge(metrics)
        self.said = set(self.broken)

    def judge(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take the metrics of the next step; 1 for each rule that is broken now and 0 for each kept one.

        A metric that the step does not define leaves its rule as it is.
        """
        for rule, values in self.values.items():
            value = metrics.get(rule.metric, math.nan)
            if math.isfinite(value):
                values.append(value)
                if len(values) == values.maxlen:
                    self._judge(rule, sum(values) / len(values))
        return {rule.key: float(rule in self.broken) for rule in self.thresholds}

    def _judge(self, rule: Rule, mean: float) -> None:
        first = self.first.setdefault(rule, mean)
        largest = self.largest[rule] = max(mean, self.largest.get(rule, mean))
        limit, words = _limit(rule, self.thresholds[rule], first, largest)
        size = abs(mean) if rule.bound == "above" else mean
        is_broken = size > limit if rule.bound in ("above", "grown") else size < limit
        self.broken.pop(rule, None)
        if is_broken:
            steps = self.values[rule].maxlen
            self.broken[rule] = f"{rule.metric} is {mean:.4g} over {steps} steps, {words}"


def _limit(rule: Rule, threshold: float, first: float, largest: float) -> tuple[float, str]:
    """The bound of a rule's mean, and how the mean lies to it where the rule is broken."""
    setting = f"health.{rule.name}={threshold:g}"
    match rule.bound:
        case "fallen":
            return threshold * largest, f"below {setting} times its best, {largest:.4g}"
        case "shrunk":
            return threshold * first, f"below {setting} times that of the first steps, {first:.4g}"
        case "grown":
            limit = max(threshold * first, SMALLEST_MISMATCH)
            return limit, f"above {setting} times that of the first steps, {first:.4g}"
        case "below":
            return threshold, f"below {setting}"
        case _:
            return threshold, f"further from 0 than {setting}"
