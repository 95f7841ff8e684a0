"""The result of checking a response."""

from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """The result of a check. All but `correct` are worth 0; `timeout` and `error` do not judge the answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    FORMAT = "format"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """The result of checking one response."""

    status: Status
    answer: str | None = None
    """The text inside the response's last complete box."""
    detail: str = ""
    """Why: how reference and answer were read and by which rule they are equal or not, or what failed."""
    seconds: float | None = field(default=None, compare=False)
    """Duration of its check, with the wait for the child process; None where it shares another's check."""

    @property
    def reward(self) -> float:
        """The paper's reward: 1 if correct, otherwise 0."""
        return 1.0 if self.status is Status.CORRECT else 0.0
