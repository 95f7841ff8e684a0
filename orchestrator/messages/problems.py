"""A problem as the driver, the engines' prompts and the verifiers know it.

In: a row of the data. Out: `Problem`, which travels to the verifiers' child processes. Imports nothing heavy.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ChatMessage = dict[str, str]
"""A chat message: `role` and `content`."""


@dataclass(frozen=True)
class Problem:
    """A problem whose solutions can be verified."""

    id: str
    messages: tuple[ChatMessage, ...] = dataclasses.field(hash=False)
    """The chat that asks the problem; a plain text is one message of the user."""
    reference: str | None
    """The reference answer; None where the verifier needs none."""
    kind: str | None = None
    """A group of problems that is reported separately; None where the row names none."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """The row's other fields, as JSON values. A verifier may read them."""
    source: str = "data"
    """The name of the source."""
    verifier: str | None = None
    """The settings of its verifier, as `verifier_text` writes them; None takes the run's."""
    line: int = 1
    """The line (JSON lines) or row, counted from 1."""
    file: str = "the data"
    """The file or data set."""
    field: str = "problem"
    """The field that holds the text."""
    answer_after: str = ""
    """The verifier sees what follows this text's last occurrence in a response; empty for all of it."""

    @classmethod
    def from_text(cls, id: str, text: str, reference: str | None, **others: Any) -> "Problem":
        """A problem that one message of the user asks."""
        return cls(id, ({"role": "user", "content": text},), reference, **others)

    @property
    def text(self) -> str:
        """What the user's last message says."""
        contents = [message["content"] for message in self.messages if message["role"] == "user"]
        return contents[-1] if contents else ""

    @property
    def where(self) -> str:
        """File, line and field of the text, for messages."""
        return f"{self.file}, line {self.line}: '{self.field}'"


def judged_part(response: str, answer_after: str) -> str | None:
    """The part of a response that is judged: what follows the last `answer_after`, or all if that is empty.

    None where the response does not hold it: the model has not ended its thinking.
    """
    _, found, rest = response.rpartition(answer_after) if answer_after else ("", "all", response)
    return rest if found else None
