"""Spans of time that an actor measured where its work was done, for a run's trace."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Span:
    """Work from `started` to `ended`, both by `time.time` of the node that did it."""

    name: str
    started: float
    ended: float
    arguments: dict[str, Any] = field(default_factory=dict)
    """What the work was on, such as its step and its tokens."""

    @property
    def seconds(self) -> float:
        return self.ended - self.started


class SpanList(list[Span]):
    """Spans in the order in which they ended; `with spans(name):` adds one."""

    @contextlib.contextmanager
    def __call__(self, name: str, **arguments: Any) -> Iterator[None]:
        """Measure what runs here as `name`. Work that raises leaves no span."""
        started = time.time()
        yield
        self.append(Span(name, started, time.time(), arguments))
