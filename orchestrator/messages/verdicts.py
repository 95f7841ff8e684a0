"""The result of checking a response."""

from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """What came of a check. All but `correct` are worth 0; `timeout` and `error` say nothing about the answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    FORMAT = "format"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """One response's result. `answer` is the text inside its last complete box, `detail` says why it is not correct."""

    status: Status
    answer: str | None = None
    detail: str = ""
    seconds: float | None = field(default=None, compare=False)
    """What its check took, from being handed to the child process; None where it shares the verdict of another check."""

    @property
    def reward(self) -> float:
        return 1.0 if self.status is Status.CORRECT else 0.0
