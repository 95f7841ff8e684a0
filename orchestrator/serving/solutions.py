"""The results that a replica returns to the ingress."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Solution:
    """One sampled solution."""

    text: str
    tokens: int
    finished: bool
    """Whether it ended with an EOS token."""
    stopped: bool
    """Whether it met a stop string."""
    logprob: float | None
    """Natural log pi(z_c | x, y, EOS); None for an unfinished solution or a model without a trained score."""
    self_reward: float | None
    """None where `logprob` is."""
    token_logprobs: list[tuple[str, float]]
    """The text and the raw log-probability of each token."""


@dataclass(frozen=True)
class Tally:
    """How the solutions of a vote became one answer."""

    samples: int
    tokens: int
    answer: str | None
    votes: dict[str, float]
    """Sum of votes of each answer."""
    settled: bool
    """Whether adaptive sampling stopped before its budget was spent; always True for a vote over n."""


@dataclass(frozen=True)
class Answer:
    """The result of a chat request, and the name of the weights that produced it."""

    weights: str
    prompt_tokens: int
    solutions: list[Solution]
    tally: Tally | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer: new text of choice `index`, or the choice's solution at its end."""

    index: int
    content: str | Solution


@dataclass(frozen=True)
class SolutionScore:
    """The score of one given solution; `score`, `logprob` and `correct` are None when it is unfinished."""

    score: float | None
    logprob: float | None
    correct: bool | None
    """Whether the score is above 0.5: the model calls the solution correct."""
    finished: bool
