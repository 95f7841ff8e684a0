"""One request of an engine: its sampling parameters, and the sink that reads its outputs.

In: engine settings, and vLLM's outputs on the decoding thread. Out: `Generated` samples or pieces, on the
caller's loop.
"""

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.messages.requests import EngineSettings
from orchestrator.messages.trajectories import Generated

if TYPE_CHECKING:
    from vllm import SamplingParams


class Sink(Protocol):
    """Receives the outputs of one request of the engine, on the decoding thread."""

    def put(self, output: Any) -> None:
        """Take one of vLLM's `RequestOutput`s; its `finished` marks the last."""


@dataclass
class PendingGroup:
    """A group in generation. `done` gets its samples when none is missing."""

    done: asyncio.Future[list[Generated]]
    loop: asyncio.AbstractEventLoop
    samples: list[Generated | None]

    def add(self, index: int, sample: Generated) -> None:
        self.samples[index] = sample
        complete = [sample for sample in self.samples if sample is not None]
        if len(complete) == len(self.samples):
            self.loop.call_soon_threadsafe(self.done.set_result, complete)


@dataclass
class GroupSink:
    """Puts the whole of one response into its group."""

    group: PendingGroup
    index: int
    settings: EngineSettings

    def put(self, output: Any) -> None:
        room = self.settings.max_response_tokens
        self.group.add(self.index, read_output(output.outputs[0], self.settings, room))


@dataclass
class PieceSink:
    """Queues the pieces of one response, and None after the last."""

    pieces: asyncio.Queue[Generated | None]
    loop: asyncio.AbstractEventLoop
    settings: EngineSettings
    room: int
    """Tokens that the response may still have."""
    last_token: int
    """The token before the next piece."""

    def put(self, output: Any) -> None:
        piece = read_output(output.outputs[0], self.settings, self.room, self.last_token)
        self.room -= len(piece.response_ids)
        self.last_token = piece.response_ids[-1] if piece.response_ids else self.last_token
        for item in (piece, None) if output.finished else (piece,):
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, item)


def sampling_params(
    settings: EngineSettings,
    *,
    seed: int,
    room: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stream: bool = False,
    response_given: bool = False,
) -> "SamplingParams":
    """vLLM's parameters of one request, for raw log-probs of the sampled tokens and of z_c after EOS.

    Args:
        room: Tokens that the response may have.
        stream: Whether each decode step puts out its tokens, and not only the last one all of them.
        response_given: Whether the prompt ends in the response's EOS, so that only z_c follows.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from actors.last_token import sampling_extra_args

    eos_tokens, z_token = list(settings.eos_tokens), settings.z_token
    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        seed=seed % 2**63,
        # One more than the response, for z_c.
        max_tokens=room + int(z_token is not None),
        ignore_eos=True,
        stop_token_ids=eos_tokens if z_token is None else [z_token],
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        extra_args=None if z_token is None else sampling_extra_args(z_token, eos_tokens, response_given),
    )


def read_output(output: Any, settings: EngineSettings, room: int, last_token: int = -1) -> Generated:
    """Split what vLLM sampled into response, behaviour log-probs and the score's log-prob.

    Args:
        output: vLLM's `CompletionOutput`, of a whole response or a piece.
        room: Tokens that the response may still have.
        last_token: The token before a piece.
    """
    token_ids, logprobs = list(output.token_ids), list(output.logprobs.logprobs)
    versions = _token_versions(output)
    z_logprob = math.nan
    if settings.z_token is not None and token_ids[-1:] == [settings.z_token]:
        token_ids.pop()
        z_logprob = logprobs.pop()
    # A request may have one token more than its response, for z_c. Any other token there is not the
    # response's.
    token_ids, logprobs = token_ids[:room], logprobs[:room]
    finished = (token_ids[-1] if token_ids else last_token) in settings.eos_tokens
    return Generated(token_ids, logprobs, finished, z_logprob, versions[: len(token_ids)])


def _token_versions(output: Any) -> list[int]:
    """Version of the weights that sampled each token of a `CompletionOutput`; -1 where vLLM names none.

    vLLM names them in a request's last output, for all its tokens: the output's own are the last of them.
    """
    versions: list[int] = []
    for span in output.weight_versions or ():
        version = -1 if span.version == "default" else int(span.version)
        versions += [version] * (span.end - span.start)
    count = len(output.token_ids)
    return versions[len(versions) - count :] if len(versions) >= count else [-1] * count
