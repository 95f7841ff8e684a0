"""What a replica answers with."""

from dataclasses import dataclass

from orchestrator.serving.voting import Tally


@dataclass(frozen=True)
class Solution:
    """One sampled solution. `logprob` is log pi(z_c | x, y, EOS); it and the score are None without an EOS or a trained score."""

    text: str
    tokens: int
    finished: bool
    stopped: bool
    """It met a stop string."""
    logprob: float | None
    self_reward: float | None
    token_logprobs: list[tuple[str, float]]
    """Each token's text and raw log-probability."""


@dataclass(frozen=True)
class Answer:
    """What came of a chat request. `weights` says which weights answered."""

    weights: str
    prompt_tokens: int
    solutions: list[Solution]
    tally: Tally | None = None


@dataclass(frozen=True)
class Piece:
    """Of a streamed answer: more text of choice `index`, or its solution at the end."""

    index: int
    content: str | Solution


@dataclass(frozen=True)
class Score:
    """One item's score; its figures are None when the response is unfinished. A model's word for correct is a score above 0.5."""

    score: float | None
    logprob: float | None
    correct: bool | None
    finished: bool
