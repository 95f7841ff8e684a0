"""The verifier `weighted`: one verdict from those of several verifiers.

In: the settings, and a verdict of each part. Out: a `Verdict` with a part for each of them. The worker runs
the parts, each in its own child process.
"""

from collections.abc import Mapping

from orchestrator.config.verifiers import WeightedSettings
from orchestrator.messages.verdicts import Status, Verdict


def combined(settings: WeightedSettings, verdicts: Mapping[str, Verdict]) -> Verdict:
    """The verdict of all parts together.

    A part that was not judged leaves the whole unjudged, unless the other parts settle the reward: a 0 in
    `all`, a 1 in `any`.

    Args:
        verdicts: One for each of `settings.parts`.
    """
    rewards = {name: verdict.reward for name, verdict in verdicts.items() if verdict.reward is not None}
    failed = {name: verdict for name, verdict in verdicts.items() if verdict.reward is None}
    settled = (settings.rule == "all" and 0.0 in rewards.values()) or (
        settings.rule == "any" and 1.0 in rewards.values()
    )
    detail = "; ".join(f"{name}: {_brief(verdict)}" for name, verdict in verdicts.items())
    if failed and not settled:
        statuses = {verdict.status for verdict in failed.values()}
        return Verdict(statuses.pop() if len(statuses) == 1 else Status.ERROR, _answer(verdicts), detail)
    weights = {name: settings.parts[name].weight for name in rewards}
    if settings.rule == "sum":
        reward = sum(weights[name] * rewards[name] for name in rewards) / sum(weights.values())
    else:
        reward = min(rewards.values()) if settings.rule == "all" else max(rewards.values())
    kept = [each.status for each in verdicts.values() if each.status in (Status.NO_ANSWER, Status.FORMAT)]
    status = kept[0] if kept and reward == 0 else Status.WRONG
    parts: dict[str, float] = dict(rewards)
    for name, verdict in verdicts.items():
        parts |= {f"{name}.{inner}": value for inner, value in verdict.parts.items()}
    return Verdict(status, _answer(verdicts), detail, reward=min(1.0, reward), parts=parts)


def _answer(verdicts: Mapping[str, Verdict]) -> str | None:
    return next((verdict.answer for verdict in verdicts.values() if verdict.answer is not None), None)


def _brief(verdict: Verdict) -> str:
    reward = "" if verdict.reward is None else f" {verdict.reward:g}"
    return f"{verdict.status}{reward}" + (f" ({verdict.detail})" if verdict.detail else "")
