"""Which samples vote, and which of their answers are equal: one rule for training and for `laser eval`.

In: verdicts, problem by problem. Out: a class for each answer, which `algorithm.voting` counts.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from actors.verification import can_vote
from orchestrator.messages.verdicts import Status
from orchestrator.pools.events import finished
from orchestrator.pools.pool import Pool

NO_VOTE = -1
"""In place of an answer's class, for a sample without a vote."""
REFERENCE = 0
"""The class of the reference answer, whether or not a sample gives it."""


class Checked(Protocol):
    """A checked sample, such as a `Verdict`."""

    @property
    def status(self) -> str:
        """A `Status`."""

    @property
    def answer(self) -> str | None:
        """The text inside the last complete box."""


def has_vote(checked: Checked) -> bool:
    """Whether the sample holds exactly one complete, non-empty box, and its check did not fail or time out.

    Such a sample has the status `correct` or `wrong`, and no other sample has. A custom verifier may omit
    the answer of a wrong sample, which then has no vote.
    """
    return checked.status == Status.CORRECT or (checked.status == Status.WRONG and bool(checked.answer))


def wrong_answers(samples: Iterable[Checked]) -> list[str]:
    """The wrong answers that have a vote, in their order. Only these need to be compared with each other."""
    return [sample.answer for sample in samples if sample.answer and sample.status == Status.WRONG]


def number_answers(samples: Iterable[Checked], wrong_classes: Iterable[int]) -> list[int]:
    """The class of each answer to one problem: REFERENCE, those of wrong answers after it, or NO_VOTE.

    Args:
        wrong_classes: Classes of the `wrong_answers`, from 0 on.
    """
    classes = iter(wrong_classes)
    numbers = []
    for sample in samples:
        if not has_vote(sample):
            numbers.append(NO_VOTE)
        elif sample.status == Status.CORRECT:
            numbers.append(REFERENCE)
        else:
            numbers.append(REFERENCE + 1 + next(classes))
    return numbers


def pool_answers(
    verifiers: Pool, problems: Sequence[Sequence[Checked]], verifier_of: Sequence[str]
) -> list[list[int]]:
    """The class of each answer to each problem, as `number_answers` numbers them.

    Correct answers equal the reference. Wrong answers to one problem are compared exactly, in a
    verifier of the pool; a comparison that times out or fails means "not equal". Where a problem's verifier
    cannot compare answers, none has a vote.

    Args:
        verifier_of: The canonical text of each problem's verifier.

    Raises:
        PoolError: The verifiers died too often.
    """
    numbers: list[list[int]] = [[] for _ in problems]
    for index, samples in enumerate(problems):
        wrong = wrong_answers(samples)
        if not can_vote(verifier_of[index]):
            numbers[index] = [NO_VOTE] * len(samples)
        elif len(set(wrong)) > 1:
            verifiers.submit("pool_answers", wrong, verifier_of[index], context=index)
        else:
            numbers[index] = number_answers(samples, [0] * len(wrong))
    for _, task, classes in finished(verifiers):
        numbers[task.context] = number_answers(problems[task.context], classes)
    return numbers
