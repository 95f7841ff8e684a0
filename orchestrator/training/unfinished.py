"""Samples none of which ended with an EOS token: what was observed, and the likely cause.

An unfinished sample has no score, and a policy that only sees such samples learns nothing of endings. The two
causes look alike: the template ends turns with a token that is no EOS, or the limit of tokens is too low.
"""

from rich.markup import escape

from orchestrator.cluster.waits import fetched
from orchestrator.data.eos import template_turn_end
from orchestrator.pools.collect import Batch
from orchestrator.training.session import Session

GROUPS_READ = 16
"""Groups whose tokens the explanation looks at."""


def warn_if_unfinished(session: Session, batch: Batch) -> None:
    """Say once in a session that no sample of a step finished, and why."""
    if session.said_unfinished or batch.finished.any():
        return
    session.said_unfinished = True
    session.say(f"[yellow]warning[/yellow] {escape(explain_unfinished(session, batch))}")


def explain_unfinished(session: Session, batch: Batch) -> str:
    """Why none of a batch's samples finished, for a person."""
    rollout, tokens = session.config.rollout, session.prepared.tokens
    name = tokens.tokenizer.convert_ids_to_tokens
    limit = rollout.max_response_tokens
    cut = int((batch.lengths >= limit).sum())
    observed = (
        f"none of {len(batch.finished)} responses ended with an EOS token "
        f"({', '.join(map(name, tokens.eos_tokens))}); {cut} were cut off at "
        f"rollout.max_response_tokens={limit}. "
    )
    end = template_turn_end(tokens.chat)
    if end is None or end in tokens.eos_tokens:
        return observed + (
            "Raise rollout.max_response_tokens; if responses go on after their answer, the model ends its "
            "turns with another token: name it in model.eos_tokens"
        )
    read = fetched([group.trajectories for group in batch.groups[:GROUPS_READ]], "samples of a step")
    samples = sum(len(group) for group in read)
    with_end = sum(end in group.sample(index).response_ids for group in read for index in range(len(group)))
    return observed + (
        f"The chat template ends a turn with {name(end)}, which is no EOS token, and {with_end} of {samples} "
        f"responses hold it: set model.eos_tokens to {[name(end), *map(name, tokens.eos_tokens)]}"
        + ("" if with_end else ", or raise rollout.max_response_tokens")
    )
