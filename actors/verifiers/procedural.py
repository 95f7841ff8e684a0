"""Marks answers with the scorer of the reasoning-gym task that made the problem.

In: a response to a problem of a `reasoning_gym:` source. Out: a verdict whose reward is the scorer's number.
"""

import re

from actors.verifiers.stated import no_answer, stated_answer
from orchestrator.data.procedural import entry_of
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

_TAGS = re.compile(r"<answer>\s?(.*?)\s?</answer>", re.DOTALL)


def score_entry(response: str, problem: Problem) -> Verdict:
    r"""The verdict of the task's own `score_answer`.

    The answer is what stands in the response's last `<answer>...</answer>`; without one, its \boxed{}, or
    what follows "the answer is".
    """
    tagged = _TAGS.findall(response)
    stated = tagged[-1] if tagged else stated_answer(response, None)
    if isinstance(stated, Verdict):
        return stated
    if stated is None:
        return no_answer()
    entries, entry = entry_of(problem.fields)
    score = float(entries.score_answer(stated, entry))
    detail = f"{problem.fields['task']}: its scorer gives {score:g}"
    return Verdict(Status.WRONG, stated, detail, reward=min(max(score, 0.0), 1.0))
