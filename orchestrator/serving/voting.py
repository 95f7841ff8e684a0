"""Votes over the solutions of one request."""

import asyncio
from dataclasses import dataclass

from actors.math_check import boxed_answers
from actors.verification import VerificationWorker


@dataclass(frozen=True)
class Tally:
    """How several solutions became one answer."""

    samples: int
    tokens: int
    answer: str | None
    votes: dict[str, float]
    settled: bool
    """Adaptive sampling stopped before its budget was spent; always True of a vote over n."""


class AnswerClasses:
    """Answers told apart by math-verify in its killable process: equal ones share a class, however they are written."""

    def __init__(self, verifier: VerificationWorker) -> None:
        self.verifier = verifier
        self.texts: list[str] = []
        """Each class's first answer."""

    async def class_of(self, solution: str) -> int:
        """The class of the solution's last boxed answer; -1 when it has none. A comparison that fails or times out means not equal."""
        answer = next((box for box in reversed(boxed_answers(solution)) if box), None)
        if answer is None:
            return -1
        if answer in self.texts:
            return self.texts.index(answer)
        for class_, known in enumerate(self.texts):
            if await asyncio.to_thread(self.verifier.pool_answers, [known, answer]) == [0, 0]:
                return class_
        self.texts.append(answer)
        return len(self.texts) - 1
