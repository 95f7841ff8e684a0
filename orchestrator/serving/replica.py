"""A served model: vLLM engine, tokenizer and self-reward card in one Ray Serve replica, so that weights and card change together.

In: parsed requests (`orchestrator.serving.requests`). Out: `Solution`s with the self-reward of the same generation, or scores of given
solutions. A request that cannot be answered comes back as an `ApiError`, returned and not raised: it is no failure of the replica.
"""

import asyncio
import contextlib
import hashlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import torch

from actors.engine import Engine
from actors.verification import VerificationWorker
from orchestrator.algorithm.adaptive import AdaptiveVote, StopRule
from orchestrator.algorithm.self_reward import self_reward_score
from orchestrator.config.serving import ReplicaConfig, ServedEngine
from orchestrator.errors import ConfigError
from orchestrator.messages.requests import EngineSettings, SampleRequest
from orchestrator.models.resolve import Model, resolve_model
from orchestrator.serving.errors import ApiError, malformed
from orchestrator.serving.metrics import ReplicaMetrics
from orchestrator.serving.requests import ChatRequest, Item, Message, MessagesItem, ScoreRequest, TokensItem
from orchestrator.serving.solutions import Answer, Piece, Score, Solution
from orchestrator.serving.streaming import StreamedText
from orchestrator.serving.voting import AnswerClasses, Tally

CALLED_CORRECT = 0.5
"""A model calls a solution correct when its score is above this (LaSeR, arXiv 2510.14943)."""

BUSY_S, ILL_S = 2.0, 60.0
"""How long a busy engine may let a question about its health wait, and how long it may be silent before it counts as stuck."""


class EngineReplica:
    """The deployment's class. A method that Ray Serve cancels takes its requests out of the engine."""

    def __init__(self, config: ReplicaConfig) -> None:
        self.hold = contextlib.ExitStack()
        """Keeps the weights from being pruned while this replica lives: others of this version read them when they start."""
        model = resolve_model(config.model, hold=self.hold)
        self.config, self.card, self.weights = config, model.card, weights_name(model)
        self.tokenizer, self.z_token, self.eos_tokens = (
            model.tokens.tokenizer,
            model.tokens.z_token,
            model.tokens.eos_tokens,
        )
        self.settings = engine_settings(model, config.engine)
        self.engine = Engine(self.settings)
        self.vocabulary = self.engine.engine.model_config.get_vocab_size()
        tokenizer = self.tokenizer
        self.special = {
            *tokenizer.all_special_tokens,
            *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special),
        }
        self.answered = time.monotonic()
        self.comparer = AnswerComparer()
        self.counted = ReplicaMetrics(self.weights)

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when its engine no longer decodes."""
        await self.engine.ping()
        self.answered = time.monotonic()

    async def status(self) -> dict[str, str | int | bool]:
        """Which weights are served and what they can take. Raises TimeoutError when the engine has not answered for long."""
        try:
            async with asyncio.timeout(BUSY_S):
                await self.check_health()
        except TimeoutError:  # a long step, with many prompts in it, is no illness
            if time.monotonic() - self.answered > ILL_S:
                raise
        return {
            "weights": self.weights,
            "self_reward": self.card is not None,
            "max_prompt_tokens": self.settings.max_prompt_tokens,
            "max_response_tokens": self.settings.max_response_tokens,
        }

    async def metrics(self) -> str:
        """Prometheus text."""
        self.counted.sequences.set(self.engine.unfinished)
        return self.counted.text()

    async def score(self, request: ScoreRequest) -> tuple[str, list[Score]] | ApiError:
        """The weights' name and the score of each item."""
        with self._counted():
            try:
                token_ids = [
                    self._item_tokens(item, f"items.{number}") for number, item in enumerate(request.items)
                ]
            except ApiError as error:
                return error
            finished = [response[-1] in self.eos_tokens for _, response in token_ids]
            async with asyncio.TaskGroup() as group:
                calls = [
                    group.create_task(self.engine.score([*prompt, *response])) if complete else None
                    for (prompt, response), complete in zip(token_ids, finished, strict=True)
                ]
        return self.weights, [self._scored(None if call is None else call.result()) for call in calls]

    async def chat(self, request: ChatRequest) -> Answer | ApiError:
        """Every choice, or the one that a vote chose."""
        with self._counted():
            try:
                prompt_ids, limit = self._prompt(request)
            except ApiError as error:
                return error
            seed = secrets.randbits(62) if request.seed is None else request.seed
            if request.laser is None:
                solutions = await self._solutions(
                    request, prompt_ids, limit, [seed + index for index in range(request.n)]
                )
                return Answer(self.weights, len(prompt_ids), solutions)
            winner, tally = await self._vote(request, prompt_ids, limit, seed)
            return Answer(self.weights, len(prompt_ids), [winner], tally)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Answer | Piece | ApiError]:
        """First an `Answer` without solutions, or an `ApiError` and nothing else; then pieces of all choices as they come."""
        try:
            prompt_ids, limit = self._prompt(request)
        except ApiError as error:
            yield error
            return
        seed = secrets.randbits(62) if request.seed is None else request.seed
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        async def run(index: int) -> None:
            try:
                solution = await self._solution(
                    request,
                    prompt_ids,
                    limit,
                    seed + index,
                    lambda text: pieces.put_nowait(Piece(index, text)),
                )
            except Exception as error:  # raised again below, where somebody waits
                pieces.put_nowait(error)
            else:
                pieces.put_nowait(Piece(index, solution))

        with self._counted():
            tasks = [asyncio.create_task(run(index)) for index in range(request.n)]
            try:
                yield Answer(self.weights, len(prompt_ids), [])
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

    async def _solutions(
        self, request: ChatRequest, prompt_ids: list[int], limit: int, seeds: Sequence[int]
    ) -> list[Solution]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._solution(request, prompt_ids, limit, seed)) for seed in seeds]
        return [task.result() for task in tasks]

    async def _solution(
        self,
        request: ChatRequest,
        prompt_ids: list[int],
        limit: int,
        seed: int,
        emit: Callable[[str], None] | None = None,
    ) -> Solution:
        """Sample one; `emit` is told of text that will stay, as it comes."""
        step_by_step = emit is not None or bool(request.stop)
        sample = SampleRequest(
            prompt_ids, seed, limit, request.temperature, request.top_p, stream=step_by_step
        )
        text = StreamedText(self.tokenizer, request.stop)
        token_ids: list[int] = []
        logprobs: list[float] = []
        finished, z_logprob = False, math.nan
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
        # A stop string may share its last tokens with the end; what was cut is not the solution that the model would have scored.
        finished = finished and not text.stopped
        score = self._self_reward(z_logprob) if finished and not math.isnan(z_logprob) else None
        self.counted.tokens_written.inc(len(token_ids))
        if score is not None:
            self.counted.scores.labels("chat").observe(score)
        shown = zip(token_ids, logprobs, strict=True) if request.logprobs else ()
        named = [(self.tokenizer.decode([id_]), logprob) for id_, logprob in shown]
        return Solution(
            text.text,
            len(token_ids),
            finished,
            text.stopped,
            None if score is None else z_logprob,
            score,
            named,
        )

    async def _vote(
        self, request: ChatRequest, prompt_ids: list[int], limit: int, seed: int
    ) -> tuple[Solution, Tally]:
        """Draw until the rule is content. Draws are counted in the order of their seeds, so that the outcome hangs on the seed alone."""
        assert request.laser is not None
        weighted, adaptive = request.laser.vote == "weighted", request.laser.adaptive
        if adaptive is None:
            most = first = then = request.laser.most_samples
            rule = StopRule(1.0, most, most, weighted)
        else:
            most, then = adaptive.max_samples, adaptive.parallel
            first = min(most, max(adaptive.min_samples, then))
            rule = StopRule(adaptive.confidence, adaptive.min_samples, most, weighted)
        vote, answers = AdaptiveVote(rule), AnswerClasses(await self.comparer.ready())
        solutions: list[Solution] = []
        classes: list[int] = []
        while not vote.settled:
            start, count = len(solutions), then if solutions else first
            seeds = [seed + index for index in range(start, min(start + count, most))]
            for solution in await self._solutions(request, prompt_ids, limit, seeds):
                solutions.append(solution)
                classes.append(await answers.class_of(solution.text))
                vote.add(
                    classes[-1],
                    math.nan if solution.self_reward is None else solution.self_reward,
                    solution.tokens,
                )
        winner = vote.winner
        voters = [
            solution for solution, class_ in zip(solutions, classes, strict=True) if class_ == winner
        ] or solutions
        best = max(
            voters, key=lambda solution: -math.inf if solution.self_reward is None else solution.self_reward
        )
        votes = {answers.texts[class_]: sum_ for class_, sum_ in vote.votes.items()}
        settled = adaptive is None or vote.samples < most
        return best, Tally(
            vote.samples, vote.tokens, None if winner is None else answers.texts[winner], votes, settled
        )

    def _prompt(self, request: ChatRequest) -> tuple[list[int], int]:
        """Token ids of the prompt, and the most tokens that a response may have. Raises ApiError."""
        if request.laser and request.laser.vote == "weighted" and self.card is None:
            raise malformed(
                f'{self.config.name} has no trained score to weigh votes with; ask for "vote": "majority"',
                "laser.vote",
            )
        longest = self.settings.max_response_tokens
        limit = request.most_tokens or longest
        if limit > longest:
            field = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
            raise malformed(f"{field} is {limit}; {self.config.name} writes at most {longest} tokens", field)
        prompt_ids = self._render(request.messages, "messages")
        if len(prompt_ids) > self.settings.max_prompt_tokens:
            raise ApiError(
                422,
                f"the prompt has {len(prompt_ids)} tokens; {self.config.name} takes at most {self.settings.max_prompt_tokens}",
                "messages",
                "context_length_exceeded",
            )
        self.counted.tokens_read.inc(len(prompt_ids))
        return prompt_ids, limit

    def _item_tokens(self, item: Item, where: str) -> tuple[list[int], list[int]]:
        """Prompt and response of an item to score. Raises ApiError that names the item."""
        if self.card is None:
            raise malformed(f"{self.config.name} has no trained score (no self_reward.json)", "model")
        if isinstance(item, TokensItem):
            prompt, response = item.prompt_token_ids, item.response_token_ids
            if (highest := max(*prompt, *response)) >= self.vocabulary:
                raise malformed(
                    f"{where}: token id {highest} is not of this model, which has {self.vocabulary}", where
                )
        else:
            if isinstance(item, MessagesItem):
                messages, solution = item.messages[:-1], item.messages[-1].content
            else:
                messages, solution = [Message(role="user", content=item.problem)], item.solution
            self._refuse_special_tokens(solution, where)
            prompt = self._render(messages, where)
            eos = (
                self.tokenizer.eos_token_id
                if self.tokenizer.eos_token_id in self.eos_tokens
                else self.eos_tokens[0]
            )
            response = [*self.tokenizer.encode(solution, add_special_tokens=False), eos]
        room = self.settings.max_prompt_tokens + self.settings.max_response_tokens
        if len(prompt) + len(response) > room:
            raise ApiError(
                422,
                f"{where}: problem and solution have {len(prompt)} + {len(response)} tokens; {self.config.name} takes {room} at most",
                where,
                "context_length_exceeded",
            )
        return list(prompt), list(response)

    def _render(self, messages: Sequence[Message], where: str) -> list[int]:
        """The prompt of a conversation, with the training's instruction after its last user message unless it stands there."""
        for message in messages:
            self._refuse_special_tokens(message.content, where)
        turns = [message.model_dump() for message in messages]
        instruction = self.card.instruction if self.card else ""
        asked = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
        if asked and instruction and not asked["content"].rstrip().endswith(instruction):
            asked["content"] = f"{asked['content']}\n{instruction}"
        try:
            return list(
                self.tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            )
        except Exception as error:  # a template is a program of its own: it raises what it likes
            raise malformed(
                f"{where}: the model's chat template refuses this conversation: {error}", where
            ) from error

    def _refuse_special_tokens(self, text: str, where: str) -> None:
        """Inside a text they would become the control tokens that they spell: turns that nobody took, or an end that is none."""
        if found := sorted(token for token in self.special if token in text):
            raise malformed(
                f"{where}: the text spells {', '.join(map(repr, found))}, control tokens of this model; take them out",
                where,
            )

    def _self_reward(self, z_logprob: float) -> float:
        assert self.card is not None
        return self_reward_score(
            torch.tensor([z_logprob], dtype=torch.float64), self.card.c_ref, self.card.beta_v
        ).item()

    def _scored(self, z_logprob: float | None) -> Score:
        if z_logprob is None:
            return Score(None, None, None, finished=False)
        score = self._self_reward(z_logprob)
        self.counted.scores.labels("score").observe(score)
        return Score(score, z_logprob, score > CALLED_CORRECT, finished=True)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self.counted.requests.track_inprogress():
            yield


class AnswerComparer:
    """The process that compares answers, which only votes need: the first vote starts it, and later ones share it.

    Args:
        start: Starts it. After a failure, such as a machine too busy to start it in time, the next vote tries again.
    """

    def __init__(self, start: Callable[[], VerificationWorker] = VerificationWorker) -> None:
        self.start = start
        self._starting: asyncio.Task[VerificationWorker] | None = None

    async def ready(self) -> VerificationWorker:
        """The running process. Raises what its start raises, to every vote that waits for this start."""
        task = self._starting
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._starting = asyncio.create_task(asyncio.to_thread(self.start))
        # Shielded, since others may wait for it when this request is cancelled.
        return await asyncio.shield(task)


def weights_name(model: Model) -> str:
    """What clients may know of the weights: a registered version, a hub name, or the end of a path with a hash of all of it."""
    path = Path(model.path)
    if model.origin.startswith("models:/") or not path.is_absolute():
        return model.origin
    parts = [part for part in path.parts if part not in ("/", "export", "checkpoints")]
    return f"{'/'.join(parts[-2:])}@{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def engine_settings(model: Model, engine: ServedEngine) -> EngineSettings:
    """How long prompts and responses may be, from what the settings and the model's positions allow.

    Raises:
        ConfigError: The settings ask for more positions than the model has.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.path).get_text_config()
    positions = config.max_position_embeddings
    prompt = engine.max_prompt_tokens or min(2048, positions // 4)
    response = engine.max_response_tokens or min(8192, positions - prompt - 1)
    if response < 1 or prompt + response + 1 > positions:
        raise ConfigError(
            f"engine.max_prompt_tokens={prompt} + engine.max_response_tokens={response} + 1 for the score is more than the "
            f"{positions} positions of {model.origin}: lower them"
        )
    return EngineSettings(
        model.path,
        model.tokens.eos_tokens,
        model.tokens.z_token,
        max_prompt_tokens=prompt,
        max_response_tokens=response,
        # vLLM's own "auto" would round float32 weights to bfloat16.
        dtype=str(config.dtype or "auto").removeprefix("torch.") if engine.dtype == "auto" else engine.dtype,
        tensor_parallel=engine.tensor_parallel,
        threads=max(1, int(engine.cpus)),
        kv_cache_gib=engine.kv_cache_gib,
        on_gpu=engine.gpus > 0,
        engine_args=engine.engine_args,
    )
