"""The result of checking a response."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

CORRECT_ABOVE = 0.5
"""A solution with a higher reward is called correct, unless the settings say otherwise."""


class Status(StrEnum):
    """The result of a check; the last three do not judge the answer, and have no reward."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    FORMAT = "format"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    ERROR = "error"


UNJUDGED = (Status.TIMEOUT, Status.MEMORY, Status.ERROR)
"""The statuses of a check that did not judge the answer."""


@dataclass(frozen=True)
class Verdict:
    """The result of checking one response.

    Raises:
        ValueError: The reward is not between 0 and 1, is missing or given against the status, or a part is
            not a finite number.
    """

    status: Status
    answer: str | None = None
    """The answer that the response states, for votes; None without one."""
    detail: str = ""
    """Why: how reference and answer were read and by which rule they are equal or not, or what failed."""
    seconds: float | None = field(default=None, compare=False)
    """Duration of its check, with the wait for the child process; None where it shares another's check."""
    reward: float | None = None
    """0 to 1. Unless given, 1 if correct, the paper's reward, None for a check that failed, else 0."""
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)
    """What the reward is made of, by name: each becomes a metric."""

    def __post_init__(self) -> None:
        judged = self.status not in UNJUDGED
        if self.reward is None and judged:
            object.__setattr__(self, "reward", 1.0 if self.status is Status.CORRECT else 0.0)
        if self.reward is not None:
            if not judged:
                raise ValueError(f"a verdict with the status {self.status} has no reward, not {self.reward}")
            if not 0 <= self.reward <= 1:
                raise ValueError(f"a reward is between 0 and 1, not {self.reward}")
            object.__setattr__(self, "reward", float(self.reward))
        if not all(math.isfinite(value) for value in self.parts.values()):
            raise ValueError(f"each part of a reward is a finite number, not {dict(self.parts)}")

    def settled(self, correct_above: float) -> "Verdict":
        """The verdict with the status that its reward asks for.

        A reward above the bound is correct. One that is not keeps the verifier's `no_answer` or `format`, and
        is wrong otherwise.
        """
        if self.reward is None:
            return self
        status = self.status
        if self.reward > correct_above:
            status = Status.CORRECT
        elif status is Status.CORRECT:
            status = Status.WRONG
        return self if status is self.status else dataclasses.replace(self, status=status)
