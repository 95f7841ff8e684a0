"""Answers as JSON: OpenAI's chat completions, whole or streamed, models, and scores.

Each choice of a completion has our field `self_reward`.
"""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.serving.requests import ChatRequest
from orchestrator.serving.solutions import Answer, Piece, Solution, SolutionScore

STARTED = int(time.time())


def scores(model: str, weights: str, results: Sequence[SolutionScore]) -> dict[str, Any]:
    """The answer of `/v1/score`."""
    return {"model": model, "weights": weights, "results": [asdict(result) for result in results]}


def model(name: str, statuses: Sequence[dict]) -> dict[str, Any]:
    """OpenAI's model object; `laser` holds the status of each replica."""
    return {
        "id": name,
        "object": "model",
        "created": STARTED,
        "owned_by": "laser",
        "laser": {"replicas": statuses},
    }


def completion(request: ChatRequest, answer: Answer) -> dict[str, Any]:
    """OpenAI's chat completion; `laser` holds the tally of a vote."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": solution.text, "refusal": None},
            "logprobs": _logprobs(solution) if request.logprobs else None,
            "finish_reason": _finish_reason(solution),
            "self_reward": solution.self_reward,
        }
        for index, solution in enumerate(answer.solutions)
    ]
    tally = answer.tally
    written = tally.tokens if tally else sum(solution.tokens for solution in answer.solutions)
    whole = _head("chat.completion", request.model, answer.weights) | {
        "choices": choices,
        "usage": _usage(answer.prompt_tokens, written),
    }
    return whole if tally is None else whole | {"laser": asdict(tally)}


class Chunks:
    """The server-sent events of a streamed completion.

    The last chunk of a choice has its `finish_reason` and `self_reward`.

    Args:
        request: The chat request.
        opening: The first item of the replica's stream: an answer without solutions.
    """

    def __init__(self, request: ChatRequest, opening: Answer) -> None:
        self.request = request
        self.prompt_tokens = opening.prompt_tokens
        self.head = _head("chat.completion.chunk", request.model, opening.weights)
        if request.stream_options.include_usage:
            self.head["usage"] = None
        self.written = 0

    def opening(self) -> Iterator[str]:
        """A first chunk for each choice."""
        for index in range(self.request.n):
            yield self._event(index, {"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> Iterator[str]:
        """The chunk of a piece."""
        if isinstance(piece.content, str):
            yield self._event(piece.index, {"content": piece.content})
            return
        solution = piece.content
        self.written += solution.tokens
        logprobs = _logprobs(solution) if self.request.logprobs else None
        yield self._event(
            piece.index,
            {},
            logprobs,
            finish_reason=_finish_reason(solution),
            self_reward=solution.self_reward,
        )

    def end(self) -> Iterator[str]:
        """The usage, if asked for, and the end of the stream."""
        if self.request.stream_options.include_usage:
            yield _data(self.head | {"choices": [], "usage": _usage(self.prompt_tokens, self.written)})
        yield "data: [DONE]\n\n"

    def _event(
        self,
        index: int,
        delta: dict,
        logprobs: dict | None = None,
        finish_reason: str | None = None,
        **more: Any,
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason} | more
        return _data(self.head | {"choices": [choice]})


def _head(kind: str, model: str, weights: str) -> dict[str, Any]:
    """The fields that all answers share; OpenAI's `system_fingerprint` holds the name of the weights."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": weights,
    }


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _finish_reason(solution: Solution) -> str:
    return "stop" if solution.finished or solution.stopped else "length"


def _logprobs(solution: Solution) -> dict[str, Any]:
    shown: dict[str, Any] = {"bytes": None, "top_logprobs": []}
    return {
        "content": [{"token": text, "logprob": logprob} | shown for text, logprob in solution.token_logprobs],
        "refusal": None,
    }


def _data(tree: dict[str, Any]) -> str:
    return f"data: {json.dumps(tree)}\n\n"
