"""A served model in one Ray Serve replica: the vLLM engine, the tokenizer and the self-reward card.

In: parsed requests (`orchestrator.serving.requests`). Out: `Solution`s with the self-reward of the same
generation, or scores of given solutions. One replica holds weights and card, so that both change together. A
request that cannot be answered returns an `ApiError` instead of raising it, because a client's mistake is no
failure of the replica.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from actors.engine import Engine
from actors.verification import voting_rule
from orchestrator.algorithm.self_reward import self_reward_score
from orchestrator.config.serving import ReplicaConfig
from orchestrator.messages.requests import SampleRequest
from orchestrator.models.resolve import resolve_model
from orchestrator.serving.errors import ApiError, malformed
from orchestrator.serving.metrics import ReplicaMetrics
from orchestrator.serving.requests import ChatRequest, ScoreRequest
from orchestrator.serving.served_engine import served_engine_settings, weights_name
from orchestrator.serving.solutions import Answer, Piece, Solution, SolutionScore
from orchestrator.serving.streaming import StreamedText
from orchestrator.serving.tokenized import RequestTokenizer
from orchestrator.serving.voting import vote

CALLED_CORRECT = 0.5
"""A model calls a solution correct when its score is above this (LaSeR, arXiv 2510.14943)."""

BUSY_S = 2.0
"""Seconds that `status` waits for a busy engine."""
STUCK_S = 60.0
"""Seconds of silence after which an engine counts as stuck."""


@dataclass(frozen=True)
class _Prompt:
    """A chat request that the model can take."""

    request: ChatRequest
    token_ids: list[int]
    most_tokens: int
    seed: int
    """Choice i is sampled with this plus i."""


class EngineReplica:
    """The deployment's class. A method that Ray Serve cancels takes its requests out of the engine."""

    def __init__(self, config: ReplicaConfig) -> None:
        """Load the model and start its engine.

        Raises:
            ConfigError: There is no such model, or it cannot be served with these settings.
        """
        self.hold = contextlib.ExitStack()
        """Keeps the weights from being pruned, because replicas that start later read them too."""
        model = resolve_model(
            config.model, hold=self.hold, eos_tokens=config.engine.eos_tokens, eos_key="engine.eos_tokens"
        )
        self.card = model.card
        self.weights = weights_name(model)
        self.tokenizer = model.tokens.tokenizer
        self.settings = served_engine_settings(model, config.engine)
        self.engine = Engine(self.settings)
        self.requests = RequestTokenizer(
            config.name,
            self.tokenizer,
            self.card,
            self.settings,
            vocabulary=self.engine.engine.model_config.get_vocab_size(),
        )
        self.answered = time.monotonic()
        """When the engine last answered a health check."""
        self.voting = voting_rule(None if self.card is None else self.card.verifier)
        self.counted = ReplicaMetrics(self.weights)

    async def check_health(self) -> None:
        """Returns when the engine decodes; Ray Serve replaces the replica when this fails."""
        await self.engine.ping()
        self.answered = time.monotonic()

    async def status(self) -> dict[str, str | int | bool]:
        """The weights that are served and the lengths that they take.

        Raises:
            TimeoutError: The engine has not answered for `STUCK_S` seconds.
        """
        try:
            async with asyncio.timeout(BUSY_S):
                await self.check_health()
        except TimeoutError:  # A step with many prompts is long, and the engine is healthy.
            if time.monotonic() - self.answered > STUCK_S:
                raise
        return {
            "weights": self.weights,
            "self_reward": self.card is not None,
            "max_prompt_tokens": self.settings.max_prompt_tokens,
            "max_response_tokens": self.settings.max_response_tokens,
        }

    async def metrics(self) -> str:
        """The replica's metrics as Prometheus text."""
        self.counted.sequences.set(self.engine.unfinished)
        return self.counted.text()

    async def score(self, request: ScoreRequest) -> tuple[str, list[SolutionScore]] | ApiError:
        """The weights' name and the score of each item, in order."""
        with self._working():
            try:
                items = [
                    self.requests.item(item, f"items[{number}]") for number, item in enumerate(request.items)
                ]
            except ApiError as error:
                return error
            async with asyncio.TaskGroup() as group:
                calls = [
                    group.create_task(self.engine.score([*prompt, *response]))
                    if response[-1] in self.settings.eos_tokens
                    else None
                    for prompt, response in items
                ]
        return self.weights, [self._scored(None if call is None else call.result()) for call in calls]

    async def chat(self, request: ChatRequest) -> Answer | ApiError:
        """All choices, or the winner of the vote that the request asks for."""
        with self._working():
            try:
                prompt = self._prompt(request)
            except ApiError as error:
                return error
            if request.laser is None:
                solutions = await self._solutions(prompt, range(request.n))
                return Answer(self.weights, len(prompt.token_ids), solutions)
            if self.voting is None:
                return malformed("the model's verifier cannot compare answers, so there is no vote", "laser")
            winner, tally = await vote(
                request.laser,
                lambda numbers: self._solutions(prompt, numbers),
                self.voting.comparer,
                self.voting.answer_of,
                "" if self.card is None else self.card.answer_after,
            )
            return Answer(self.weights, len(prompt.token_ids), [winner], tally)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Answer | Piece | ApiError]:
        """An `Answer` without solutions and then the pieces of all choices; or a single `ApiError`."""
        try:
            prompt = self._prompt(request)
        except ApiError as error:
            yield error
            return
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        async def run(index: int) -> None:
            try:
                solution = await self._solution(
                    prompt, index, lambda text: pieces.put_nowait(Piece(index, text))
                )
            except Exception as error:  # Raised again below, in the task that the caller awaits.
                pieces.put_nowait(error)
            else:
                pieces.put_nowait(Piece(index, solution))

        with self._working():
            tasks = [asyncio.create_task(run(index)) for index in range(request.n)]
            try:
                yield Answer(self.weights, len(prompt.token_ids), [])
                running = request.n
                while running:
                    piece = await pieces.get()
                    if isinstance(piece, Exception):
                        raise piece
                    running -= isinstance(piece.content, Solution)
                    yield piece
            finally:
                for task in tasks:
                    task.cancel()

    def _prompt(self, request: ChatRequest) -> _Prompt:
        """Raises ApiError."""
        token_ids, most_tokens = self.requests.prompt(request)
        self.counted.tokens_read.inc(len(token_ids))
        seed = secrets.randbits(62) if request.seed is None else request.seed
        return _Prompt(request, token_ids, most_tokens, seed)

    async def _solutions(self, prompt: _Prompt, numbers: Iterable[int]) -> list[Solution]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._solution(prompt, number)) for number in numbers]
        return [task.result() for task in tasks]

    async def _solution(
        self, prompt: _Prompt, number: int, emit: Callable[[str], None] | None = None
    ) -> Solution:
        """Sample one solution; `emit` takes new text as it is sampled."""
        request = prompt.request
        sample = SampleRequest(
            prompt.token_ids,
            prompt.seed + number,
            prompt.most_tokens,
            request.temperature,
            request.top_p,
            stream=emit is not None or bool(request.stop),
        )
        text = StreamedText(self.tokenizer.backend_tokenizer, request.stop)
        token_ids: list[int] = []
        logprobs: list[float] = []
        finished = False
        z_logprob = math.nan
        async with contextlib.aclosing(self.engine.sample(sample)) as pieces:
            async for piece in pieces:
                token_ids += piece.response_ids
                logprobs += piece.logprobs
                finished, z_logprob = piece.finished, piece.z_logprob
                new = text.add(piece.response_ids)
                if emit and new:
                    emit(new)
                if text.stopped:
                    break
        rest = text.end()
        if emit and rest:
            emit(rest)
        self.counted.tokens_written.inc(len(token_ids))
        # The tokens that hold a stop string may also be the last ones. The text without it is then not the
        # solution that the model scored.
        finished = finished and not text.stopped
        scored = finished and math.isfinite(z_logprob)
        named = zip(token_ids, logprobs, strict=True) if request.logprobs else ()
        return Solution(
            text.text,
            len(token_ids),
            finished,
            text.stopped,
            z_logprob if scored else None,
            self._self_reward(z_logprob, "chat") if scored else None,
            [(self.tokenizer.decode([token_id]), logprob) for token_id, logprob in named],
        )

    def _scored(self, z_logprob: float | None) -> SolutionScore:
        if z_logprob is None:
            return SolutionScore(None, None, None, finished=False)
        if not math.isfinite(z_logprob):
            return SolutionScore(None, None, None, finished=True)
        score = self._self_reward(z_logprob, "score")
        return SolutionScore(score, z_logprob, score > CALLED_CORRECT, finished=True)

    def _self_reward(self, z_logprob: float, endpoint: str) -> float:
        """The score of a log pi(z_c | x, y, EOS), which the endpoint's metric counts."""
        assert self.card is not None
        logprob = torch.tensor([z_logprob], dtype=torch.float64)
        score = self_reward_score(logprob, self.card.c_ref, self.card.beta_v).item()
        self.counted.scores.labels(endpoint).observe(score)
        return score

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        with self.counted.requests.track_inprogress():
            yield
