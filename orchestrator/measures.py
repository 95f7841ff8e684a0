"""Every metric of a training step and every figure of an evaluation, once: what it is and where it is shown.

Tables, panels, the report and a sweep's formulas take their names and texts from here, and show them in the
order of `MEASURES`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Place(Enum):
    """A list of measures that a user sees or may use."""

    PANEL = "the live panel of a run, and its lines where there is no terminal"
    SUMMARY = "the table at the end of `laser train`"
    EVALUATION = "the table of figures of `laser eval`"
    VOTES = "the table of votes of `laser eval`"
    HEALTH = "the warning of the live panel, while a health rule is broken"
    OBJECTIVE = "the names that a sweep's `metric` may use: the figures of the evaluation during training"
    REPORT_TABLE = "the table of runs of `laser report`"
    REPORT_TILES = "the top of the report on a single run"
    REPORT_SURFACES = "the report's figures over the searched keys"
    STEP_PARTS = "the parts of a step's time in the report"


@dataclass(frozen=True)
class Measure:
    """A metric of a training step (its key has a `/`) or a figure of an evaluation.

    A value that the samples do not define is NaN.
    """

    key: str
    """Its name in MLflow, in `metrics.jsonl` and in `results.json`; `_k` stands for the number of samples."""
    title: str
    """Its name in words, as it reads within a sentence; `@k` stands for the number of samples."""
    about: str
    """What it is, without a full stop."""
    healthy: str = ""
    """What it does while all is well, where `better` does not say it."""
    better: Literal["higher", "lower", ""] = ""
    """Which values are better; empty where neither are."""
    unit: str = ""
    """Empty for shares, counts and values without a unit."""
    short: str = ""
    """Its name where there is little room, unless it is the title."""
    places: tuple[Place, ...] = ()
    chart: str = ""
    """The group of the report's charts that it is drawn in; empty for none."""
    of_score: bool = False
    """It needs a self-reward score."""

    @property
    def label(self) -> str:
        """Its name where there is little room, with its unit where that is seconds."""
        return (self.short or self.title) + (" s" if self.unit == "s" else "")

    @property
    def heading(self) -> str:
        """The title as it stands alone."""
        return self.title[0].upper() + self.title[1:]

    @property
    def caption(self) -> str:
        """What it is, and which values are good, as sentences."""
        advice = self.healthy or (f"{self.better.capitalize()} is better" if self.better else "")
        return f"{self.about}." + (f" {advice}." if advice else "")


AVERAGE = "average"
"""The name of the mean over several sets, in place of a set's."""
EVALUATION_CHARTS = "On held-out problems"
BATCH_CHARTS = "On training batches"
LOSS_CHARTS = "Losses"
STABILITY_CHARTS = "Stability"
HEALTH_CHARTS = "Health rules"
TIME_CHARTS = "Time"

CHART_GROUPS = (
    EVALUATION_CHARTS,
    BATCH_CHARTS,
    LOSS_CHARTS,
    STABILITY_CHARTS,
    HEALTH_CHARTS,
    TIME_CHARTS,
)
"""The groups of the report's charts, in order."""

_TABLES = (Place.SUMMARY, Place.EVALUATION, Place.OBJECTIVE)
_REPORT = (Place.REPORT_TABLE, Place.REPORT_TILES)

# A table is easier to read with a measure a few lines.
# fmt: off
MEASURES = (
    # Figures of an evaluation.
    Measure("accuracy", "accuracy", "Share of sampled solutions that are right", better="higher",
            places=(*_TABLES, *_REPORT, Place.REPORT_SURFACES), chart=EVALUATION_CHARTS),
    Measure("reward", "mean reward",
            "Mean reward of sampled solutions; equals accuracy unless rewards are graded",
            better="higher", places=(Place.OBJECTIVE,)),
    Measure("accuracy_low", "95 % interval of accuracy",
            "Lower end of the 95 % bootstrap interval over problems",
            places=(Place.EVALUATION,)),
    Measure("accuracy_high", "upper end of accuracy", "Upper end of that interval"),
    Measure("finished_share", "finished", "Share of solutions that ended by themselves", better="higher",
            places=_TABLES),
    Measure("self_verification_f1", "self-verification F1",
            "How well score > 0.5 tells right from wrong; both count equally", better="higher", short="F1",
            places=(*_TABLES, *_REPORT, Place.REPORT_SURFACES), chart=EVALUATION_CHARTS, of_score=True),
    Measure("accuracy_correct", "right ones called right", "Share of right solutions that score above 0.5",
            better="higher", places=(Place.EVALUATION, Place.OBJECTIVE), of_score=True),
    Measure("accuracy_wrong", "wrong ones called wrong", "Share of wrong solutions that score at most 0.5",
            better="higher", places=(Place.EVALUATION, Place.OBJECTIVE), of_score=True),
    Measure("f1_answered", "F1 with an answer", "Self-verification F1 over the solutions that give an answer",
            better="higher", places=(Place.EVALUATION,), of_score=True),
    Measure("accuracy_correct_answered", "right ones with an answer called right",
            "Share of right solutions with an answer that score above 0.5", better="higher",
            places=(Place.EVALUATION,), of_score=True),
    Measure("accuracy_wrong_answered", "wrong ones with an answer called wrong",
            "Share of wrong solutions with an answer that score at most 0.5", better="higher",
            places=(Place.EVALUATION,), of_score=True),
    Measure("auroc", "AUROC", "Chance that a right solution scores above a wrong one; 0.5 is guessing",
            better="higher", places=(*_TABLES, Place.REPORT_TABLE), chart=EVALUATION_CHARTS, of_score=True),
    Measure("auroc_within_problem", "AUROC within a problem",
            "The same among solutions of one problem, which are equally hard", better="higher",
            short="AUROC within", places=(*_TABLES, *_REPORT), chart=EVALUATION_CHARTS, of_score=True),
    Measure("auroc_problem_only", "AUROC of the problem's kind alone",
            "AUROC of a score that knows only how hard problems of this kind are",
            places=(Place.SUMMARY, Place.OBJECTIVE), of_score=True),
    Measure("mixed_problems", "mixed problems", "Problems with both right and wrong finished solutions",
            places=(Place.OBJECTIVE,)),
    Measure("ece", "calibration error", "Expected gap between score and accuracy, over ten bins of the score",
            better="lower", places=(Place.EVALUATION, Place.OBJECTIVE), of_score=True),
    Measure("pass_at_k", "pass@k", "Chance that one of a problem's solutions is right", better="higher",
            places=(Place.VOTES,)),
    Measure("maj_at_k", "Maj@k", "Accuracy of the majority vote over a problem's solutions", better="higher",
            places=(*_REPORT, Place.SUMMARY, Place.OBJECTIVE, Place.VOTES)),
    Measure("weighted_at_k", "weighted Maj@k", "Accuracy of the vote weighted by score", better="higher",
            short="weighted", places=(*_REPORT, Place.SUMMARY, Place.OBJECTIVE, Place.VOTES), of_score=True),
    Measure("best_of_k", "best-of-k by score", "Accuracy of the solution with the highest score",
            better="higher",
            places=(Place.VOTES,), of_score=True),
    Measure("response_tokens", "tokens a sample", "Mean length of a solution", unit="tokens",
            places=(Place.EVALUATION, Place.OBJECTIVE)),
    Measure("unverified", "unverified", "Solutions whose check timed out or failed: neither right nor wrong",
            better="lower", places=(Place.OBJECTIVE,)),
    # Metrics of a training step.
    Measure("train/accuracy", "accuracy", "Share of a step's checked solutions that are right", "Should rise",
            places=(Place.PANEL,), chart=BATCH_CHARTS),
    Measure("train/reward", "mean reward",
            "Mean reward of a step's checked solutions; equals accuracy unless rewards are graded",
            "Should rise"),
    Measure("self_reward/f1", "self-verification F1",
            "The score's agreement with the verifier on a step's solutions", "Should rise", short="F1",
            places=(Place.PANEL,), chart=BATCH_CHARTS, of_score=True),
    Measure("self_reward/accuracy_correct", "right ones called right",
            "Share of a step's right solutions that score above 0.5", "Should rise", of_score=True),
    Measure("self_reward/accuracy_wrong", "wrong ones called wrong",
            "Share of a step's wrong solutions that score at most 0.5", "Should rise", of_score=True),
    Measure("self_reward/score_correct", "score of right ones", "Mean score of a step's right solutions",
            "Should come near 1", of_score=True),
    Measure("self_reward/score_wrong", "score of wrong ones", "Mean score of a step's wrong solutions",
            "Should come near 0", of_score=True),
    Measure("self_reward/mismatch_max", "engine–learner gap of the score token, largest",
            "Largest difference between the engine's and the learner's log pi(z_c)", "Should stay small",
            unit="nats",
            of_score=True),
    Measure("self_reward/z_mass", "score token before EOS",
            "Mean probability of z_c in the place of a response's token; the engine never samples it there",
            "Should stay near 0", chart=STABILITY_CHARTS, of_score=True),
    Measure("loss/policy", "policy loss", "The clipped policy-gradient term",
            "Stays near 0; its size means little", chart=LOSS_CHARTS),
    Measure("loss/self_reward", "self-reward loss", "Weighted squared gap between score and verdict",
            "Should fall", chart=LOSS_CHARTS, of_score=True),
    Measure("loss/total", "total loss",
            "What training minimises: policy loss + alpha × self-reward loss + KL", "Spikes are a bad sign",
            short="loss", places=(Place.PANEL,), chart=LOSS_CHARTS),
    Measure("train/response_tokens", "response tokens", "Mean length of a step's solutions",
            "A slow drift is fine; a jump or collapse is not", unit="tokens", short="tokens",
            places=(Place.PANEL,), chart=BATCH_CHARTS),
    Measure("train/finished_share", "finished", "Share of a step's solutions that ended by themselves",
            "Should be near 1", chart=BATCH_CHARTS),
    Measure("policy/grad_norm", "gradient norm", "Norm of the gradient, before clipping",
            "Steady is good; growth by orders of magnitude is not", chart=LOSS_CHARTS),
    Measure("policy/kl", "KL to the reference", "How far the policy has moved from the initial model",
            "Should grow slowly", unit="nats", chart=STABILITY_CHARTS),
    Measure("policy/mismatch_kl", "engine–learner KL",
            "KL between generating engine and learner on the same tokens", "Should stay near 0", unit="nats",
            chart=STABILITY_CHARTS),
    Measure("policy/mismatch_mean", "engine–learner gap, mean",
            "Mean difference between the engine's and the learner's log-probability of a token",
            "Should stay small", unit="nats", chart=STABILITY_CHARTS),
    Measure("policy/mismatch_max", "engine–learner gap, largest",
            "Largest difference between the engine's and the learner's log-probability of a token",
            "Single spikes are harmless; a trend is not", unit="nats", chart=STABILITY_CHARTS),
    Measure("policy/entropy", "entropy", "How undecided the policy is about the next learned token",
            "A fall to 0 ends exploration", unit="nats", chart=STABILITY_CHARTS),
    Measure("policy/clip_share", "clipped tokens", "Share of the learned tokens whose update was clipped",
            "A few percent or less is good", chart=STABILITY_CHARTS),
    Measure("policy/importance_truncated", "truncated tokens",
            "Share of learned tokens whose importance weight was cut to loss.importance_cap",
            "A few percent or less is good", chart=STABILITY_CHARTS),
    Measure("policy/importance_masked", "masked tokens",
            "Share of learned tokens outside loss.importance_bounds, which the policy loss leaves out",
            "A few percent or less is good", chart=STABILITY_CHARTS),
    Measure("policy/importance_mean", "mean importance weight",
            "Mean weight of a token in the policy loss", "Is 1 without a correction, and near 1 with one"),
    Measure("policy/importance_ess", "effective share of tokens",
            "Share of learned tokens that would say as much if all weighed the same",
            "Is 1 without a correction; far below 1 the weights differ too much", chart=STABILITY_CHARTS),
    Measure("learn/skipped_steps", "skipped updates",
            "Updates of a step that were skipped, because a loss, gradient or log-prob was not finite",
            "Should be 0"),
    Measure("rollout/staleness", "staleness",
            "Mean over a step's samples of the age of the oldest weights that sampled a token",
            "0 is on-policy", unit="steps"),
    Measure("rollout/staleness_max", "largest staleness",
            "Age of the oldest weights that sampled a token of the step",
            "At most rollout.max_staleness", unit="steps"),
    Measure("time/start", "start",
            "Seconds from the command to the first sampled token, at the first step after it", better="lower",
            unit="s"),
    Measure("time/start_pools", "start of the pools",
            "Seconds from the command until all pools could work, at the first step after it", better="lower",
            unit="s"),
    Measure("time/wait", "waiting for samples",
            "Seconds of a step in which the ranks' next batch was not complete", better="lower", unit="s"),
    Measure("time/rollout", "generating", "Seconds of generation in a step", better="lower", unit="s",
            short="rollout", places=(Place.PANEL, Place.STEP_PARTS)),
    Measure("time/verify", "checking", "Seconds of checking in a step", better="lower", unit="s",
            short="verify", places=(Place.PANEL, Place.STEP_PARTS)),
    Measure("time/learn", "learning", "Seconds of the policy update in a step", better="lower", unit="s",
            short="learn", places=(Place.PANEL, Place.STEP_PARTS)),
    Measure("time/streamed", "learning ahead",
            "Seconds of the policy update in rounds of learning.stream, most of them during generation",
            unit="s"),
    Measure("time/sync", "sending weights", "Seconds in which the engines get a step's weights",
            better="lower", unit="s", short="sync", places=(Place.PANEL, Place.STEP_PARTS)),
    Measure("time/step", "seconds a step", "Wall-clock time of a whole step", better="lower", unit="s",
            short="step", places=(Place.PANEL,), chart=TIME_CHARTS),
    Measure("throughput/samples_per_s", "solutions a second",
            "Solutions generated, checked and learned from a second",
            better="higher", unit="1/s", chart=TIME_CHARTS),
    Measure("throughput/tokens_per_s", "tokens a second", "Response tokens a second of a whole step",
            better="higher", unit="tokens/s", chart=TIME_CHARTS),
    Measure("throughput/rollout_tokens_per_s", "tokens a second of generation",
            "Response tokens a second that the engines make while they work", better="higher",
            unit="tokens/s"),
    Measure("throughput/learning_tokens_per_s", "tokens a second of learning",
            "Response tokens a second that the learner learns from while it works", better="higher",
            unit="tokens/s"),
    Measure("verify/timeouts", "timed-out checks", "Checks of a step that were ended at their deadline",
            better="lower"),
    Measure("verify/memory", "checks out of memory", "Checks of a step that reached their memory limit",
            better="lower"),
    Measure("verify/errors", "failed checks", "Checks of a step that failed", better="lower"),
    Measure("data/skipped", "skipped problems",
            "Problems that were skipped because their prompts are too long, since the run started",
            better="lower"),
    Measure("data/dropped", "dropped problems",
            "Problems that were dropped because engines or verifiers died on them, since the run started",
            better="lower"),
    Measure("pool/restarts", "restarts", "Workers replaced after they died, since the run started",
            better="lower"),
    Measure("sync/bytes", "size of the weights", "Size of the weights that each engine reads", unit="bytes"),
    Measure("health/accuracy", "accuracy has collapsed",
            "Is 1 while accuracy is below health.accuracy of its best", "Should be 0",
            places=(Place.HEALTH,), chart=HEALTH_CHARTS),
    Measure("health/entropy", "entropy has collapsed",
            "Is 1 while the policy's entropy is below health.entropy", "Should be 0",
            places=(Place.HEALTH,), chart=HEALTH_CHARTS),
    Measure("health/length", "length has collapsed",
            "Is 1 while responses are shorter than health.length of the first steps'", "Should be 0",
            places=(Place.HEALTH,), chart=HEALTH_CHARTS),
    Measure("health/score", "wrong solutions score high",
            "Is 1 while the mean score of wrong solutions is further from 0 than health.score", "Should be 0",
            places=(Place.HEALTH,), chart=HEALTH_CHARTS),
    Measure("health/z_mass", "score token before EOS",
            "Is 1 while z_c's mean probability before EOS is above health.z_mass", "Should be 0",
            places=(Place.HEALTH,), chart=HEALTH_CHARTS),
    Measure("health/mismatch", "engine and learner drift apart",
            "Is 1 while the engine–learner KL is above health.mismatch times that of the first steps",
            "Should be 0", places=(Place.HEALTH,), chart=HEALTH_CHARTS),
)
# fmt: on

_BY_KEY = {measure.key: measure for measure in MEASURES}

FIGURES = tuple(measure for measure in MEASURES if "/" not in measure.key)
"""Figures of an evaluation."""


def is_point(key: str, value: float) -> bool:
    """Whether a metric's value is a point of its curve.

    A NaN is none, since the samples do not define the metric. But a loss and a metric of the policy are
    always defined: there a NaN is a number that overflowed.
    """
    return value == value or key.startswith(("loss/", "policy/"))


def measure_of(key: str) -> Measure:
    """The measure of that key; KeyError for any other."""
    return _BY_KEY[key]


def shown_in(place: Place) -> Iterator[Measure]:
    """The measures that a place shows, in order."""
    return (measure for measure in MEASURES if place in measure.places)


def charted_in(group: str) -> Iterator[Measure]:
    """The measures that a group of the report's charts draws, in order."""
    return (measure for measure in MEASURES if measure.chart == group)
