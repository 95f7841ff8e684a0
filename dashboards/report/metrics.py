"""The metrics that the report shows, with titles and captions: plain tables, in the order of the page."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """One plot of a metric over training steps."""

    metric: str
    title: str
    caption: str


COLUMNS = {
    "accuracy": ("accuracy", "Share of sampled solutions that are right"),
    "self_verification_f1": ("F1", "Self-verification F1: how well score > 0.5 tells right from wrong"),
    "auroc": ("AUROC", "Chance that a right solution scores above a wrong one"),
    "auroc_within_problem": ("AUROC within", "The same among solutions of one problem"),
    "maj_at_k": ("Maj@k", "Accuracy of the majority vote over a problem's solutions"),
    "weighted_at_k": ("weighted", "Accuracy of the vote weighted by score"),
}
"""Name and explanation of the table's columns, by evaluation figure."""

HEADLINE = {
    "accuracy": "Accuracy",
    "self_verification_f1": "F1",
    "auroc_within_problem": "AUROC within a problem",
    "maj_at_k": "Maj@k",
    "weighted_at_k": "Maj@k weighted by score",
}
"""What the top of the page of a single run shows, by evaluation figure."""

SURFACES = {
    "accuracy": ("Accuracy", "Share of held-out solutions that are right. Higher is better."),
    "self_verification_f1": (
        "Self-verification F1",
        "How well score > 0.5 tells right from wrong. Higher is better.",
    ),
}
"""Title and caption of the figures that are drawn over the searched keys, beside the sweep's objective."""

EVALUATION_GROUP = "On held-out problems"
TIME_GROUP = "Time"

CHARTS: dict[str, list[Chart]] = {
    EVALUATION_GROUP: [
        Chart("accuracy", "Accuracy", "Share of sampled solutions that are right. Higher is better."),
        Chart(
            "self_verification_f1",
            "Self-verification F1",
            "How well score > 0.5 tells right from wrong; both count equally. Higher is better.",
        ),
        Chart(
            "auroc",
            "AUROC",
            "Chance that a right solution scores above a wrong one; 0.5 is guessing. Higher is better.",
        ),
        Chart(
            "auroc_within_problem",
            "AUROC within a problem",
            "The same among solutions of one problem, which are equally hard. Higher is better.",
        ),
    ],
    "On training batches": [
        Chart("train/accuracy", "Accuracy", "Share of a step's solutions that are right. Should rise."),
        Chart(
            "self_reward/f1",
            "Self-verification F1",
            "The score's agreement with the verifier on a step's solutions. Should rise.",
        ),
        Chart(
            "train/response_tokens",
            "Response tokens",
            "Mean length of a solution. A slow drift is fine; a jump or collapse is not.",
        ),
        Chart(
            "train/finished_share",
            "Finished",
            "Share of solutions that ended by themselves. Should be near 1.",
        ),
    ],
    "Losses": [
        Chart(
            "loss/policy",
            "Policy loss",
            "The clipped policy-gradient term. Stays near 0; its size means little.",
        ),
        Chart(
            "loss/self_reward",
            "Self-reward loss",
            "Weighted squared gap between score and verdict. Should fall.",
        ),
        Chart(
            "loss/total",
            "Total loss",
            "What training minimises: policy loss + alpha × self-reward loss + KL. Spikes are a bad sign.",
        ),
        Chart(
            "policy/grad_norm",
            "Gradient norm",
            "Before clipping. Steady is good; growth by orders of magnitude is not.",
        ),
    ],
    "Stability": [
        Chart(
            "policy/kl",
            "KL to the reference",
            "How far the policy has moved from the initial model. Should grow slowly.",
        ),
        Chart(
            "policy/mismatch_kl",
            "Engine–learner KL",
            "KL between generating engine and learner on the same tokens. Should stay near 0.",
        ),
        Chart(
            "policy/mismatch_mean",
            "Engine–learner gap, mean",
            "Mean |difference of log-probability| over tokens. Should stay small.",
        ),
        Chart(
            "policy/mismatch_max",
            "Engine–learner gap, largest",
            "The worst token of a step. Single spikes are harmless; a trend is not.",
        ),
        Chart(
            "policy/entropy",
            "Entropy",
            "How undecided the policy is about the next token. A fall to 0 ends exploration.",
        ),
        Chart(
            "policy/clip_share",
            "Clipped tokens",
            "Share of tokens whose update was clipped. A few percent or less is good.",
        ),
    ],
    TIME_GROUP: [
        Chart("time/step", "Seconds a step", "Wall-clock time of a whole step. Lower is better."),
        Chart(
            "throughput/samples_per_s",
            "Solutions a second",
            "Solutions generated, checked and learned from. Higher is better.",
        ),
        Chart(
            "throughput/tokens_per_s",
            "Tokens a second",
            "Response tokens in the same time. Higher is better.",
        ),
    ],
}

TIME_PARTS = {
    "time/rollout": "generating",
    "time/verify": "checking",
    "time/learn": "learning",
    "time/sync": "sending weights",
}


def metric_words(metric: str) -> str:
    """An expression of evaluation figures in words."""
    return metric.replace("self_verification_f1", "F1").replace("_", " ")
