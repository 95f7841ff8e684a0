"""What `rollout.max_staleness` means for a configuration, in words: for `laser check`."""

from orchestrator.cluster.machine import GIB
from orchestrator.config.training import RunConfig

TOKEN_BYTES = 16
"""Of a response token in the object store: id, log-prob, version, and about four characters of text."""


def explain_staleness(config: RunConfig) -> tuple[list[str], list[str]]:
    """Lines of text about weights that lag behind, and warnings; both are empty on-policy."""
    rollout, loss, ahead = config.rollout, config.loss, config.rollout.max_staleness
    if ahead == 0:
        return [], []
    tokens = config.samples_per_step * (rollout.max_prompt_tokens + rollout.max_response_tokens)
    stored = config.batches_in_flight * tokens * TOKEN_BYTES / GIB
    lines = [
        f"engines sample up to {_batches(ahead)} ahead, while the ranks learn; they take new weights between "
        "two decode steps and drop nothing",
        f"the weights that sampled a token are at most {ahead} versions older than those that learn from it "
        "(rollout/staleness and rollout/staleness_max)",
        f"{_batches(config.batches_in_flight)} at a time take at most {stored:,.2f} GiB of the object store, "
        "with samples of the greatest length",
    ]
    if loss.importance_cap is not None or loss.importance_bounds is not None:
        return lines, []
    return lines, [
        f"rollout.max_staleness={ahead} without a correction: tokens of older weights count as if the "
        "learner had sampled them; set loss.importance_cap, such as loss.importance_cap=2, or "
        "loss.importance_bounds"
    ]


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count} batches"
