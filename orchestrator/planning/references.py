"""The references of a data set that the verifier `math` cannot read: `laser verify`.

In: a data set. Out: each reference that is not wholly read, and what of it is not. A run would report the
check of an answer to it as an error.
"""

from dataclasses import dataclass

from actors.answers.compare import unread_part
from orchestrator.config.evaluation import NAMED_SETS
from orchestrator.data.problems import Problem, load_problems


@dataclass(frozen=True)
class UnreadReference:
    """A reference that is not wholly read."""

    problem: Problem
    reason: str
    """What could not be read."""


@dataclass(frozen=True)
class CheckedReferences:
    """What a check of a data set's references found."""

    data: str
    references: int
    unread: list[UnreadReference]


def check_references(data: str, problem_field: str, answer_field: str, split: str) -> CheckedReferences:
    """Read every reference of a data set, as the verifier would.

    Args:
        data: A file, a data set, or a set with a name, such as `math500`, which has its own fields and split.

    Raises:
        DataError: The data cannot be read.
    """
    named = NAMED_SETS.get(data)
    if named is not None:
        problems = load_problems(named.source, named.problem_field, named.answer_field, split=named.split)
    else:
        problems = load_problems(data, problem_field, answer_field, split=split)
    unread = [
        UnreadReference(problem, reason)
        for problem in problems
        if problem.reference is not None and (reason := unread_part(problem.reference)) is not None
    ]
    return CheckedReferences(data, len(problems), unread)


def report_lines(found: CheckedReferences) -> list[str]:
    """The outcome as lines of text: one for each unread reference, then the count."""
    each = [
        f"{found.data}, line {one.problem.line}: {one.problem.reference!r}: cannot read {one.reason}"
        for one in found.unread
    ]
    if not found.unread:
        return [f"{found.data}: all {found.references} references are read"]
    return [
        *each,
        f"{found.data}: {len(found.unread)} of {found.references} references are not wholly read. Only an "
        "answer with the same text would be right: correct these lines, or leave them out.",
    ]
