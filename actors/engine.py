"""A vLLM engine driven by one thread: solutions, behaviour log-probs and the score in the same generation.

In: `GroupRequest`s and, between two decode steps, weights with a version. Out, as soon as a group's last
sample ends: its packed `Trajectories`, the decoded texts and a `GroupSummary`. A service takes single
samples while they are decoded (`Engine.sample`), and the score of given tokens (`Engine.score`). This
module imports no Ray.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from actors.host_memory import return_free_memory
from actors.progress import advance
from actors.sampling import GroupSink, PendingGroup, PieceSink, Sink, sampling_params
from orchestrator.config.optional_packages import without_packages
from orchestrator.data.model_files import load_tokenizer
from orchestrator.messages.requests import CPU_KV_CACHE_GIB, EngineSettings, GroupRequest, SampleRequest
from orchestrator.messages.spans import Span
from orchestrator.messages.trajectories import Generated, GroupSummary, Trajectories, pack
from orchestrator.messages.weights import WeightChunk
from orchestrator.storage.files import without_patterns

if TYPE_CHECKING:
    from vllm import SamplingParams

Returned = TypeVar("Returned")


class Engine:
    """A vLLM engine that a thread of its process decodes with.

    If a decode step fails, or a weight update fails half-way, the process ends, because the engine's state is
    unknown.
    """

    def __init__(self, settings: EngineSettings) -> None:
        _prepare_process(settings)
        with without_packages("sklearn"):  # transformers wants it for assisted generation
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

        self.settings = settings
        self.tokenizer = load_tokenizer(settings.model_path)
        self.engine = LLMEngine.from_engine_args(EngineArgs(**_engine_arguments(settings)))
        return_free_memory()  # of loading, packing and compiling
        self.version = -1
        self.first_token_at: float | None = None
        """When the first token was sampled, on the clock of `time.monotonic`."""
        self._sinks: dict[str, Sink] = {}
        """By request id; only the decoding thread touches it."""
        self._numbers = itertools.count()
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], concurrent.futures.Future]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._decode, name="decode", daemon=True).start()

    async def generate(self, request: GroupRequest) -> tuple[Trajectories, list[str], GroupSummary]:
        """Sample a group. Returns when its last sample has ended; texts leave out special tokens."""
        loop = asyncio.get_running_loop()
        group = PendingGroup(loop.create_future(), loop, [None] * request.num_samples)

        def add() -> None:
            for index in range(request.num_samples):
                params = sampling_params(
                    self.settings,
                    seed=request.seed + index,
                    room=self.settings.max_response_tokens,
                    temperature=request.temperature,
                )
                self._add(self._name(), request.prompt_ids, params, GroupSink(group, index, self.settings))

        await self._between_steps(add)
        samples = await group.done
        trajectories = pack(request.prompt_ids, samples)
        texts = self.tokenizer.batch_decode(
            [sample.response_ids for sample in samples], skip_special_tokens=True
        )
        return trajectories, texts, trajectories.summary()

    async def sample(self, request: SampleRequest) -> AsyncGenerator[Generated, None]:
        """Sample one solution, in pieces of new tokens; the last one has `finished` and `z_logprob`.

        An iteration that ends early or is cancelled takes the request out of the engine.
        """
        params = sampling_params(
            self.settings,
            seed=request.seed,
            room=request.max_response_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stream=request.stream,
        )
        async with contextlib.aclosing(
            self._pieces(request.prompt_ids, params, request.max_response_tokens, last_token=-1)
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def score(self, token_ids: Sequence[int]) -> float:
        """Natural log pi(z_c | token_ids), by one prefill and one decode step.

        Args:
            token_ids: Prompt and response, EOS included.

        Raises:
            ValueError: They do not end in an EOS token, or the engine has no score token.
        """
        if self.settings.z_token is None or token_ids[-1] not in self.settings.eos_tokens:
            raise ValueError(
                "only a response that ends in an EOS token has a score, and only with a score token"
            )
        params = sampling_params(self.settings, seed=0, room=0, response_given=True)
        pieces = [piece async for piece in self._pieces(token_ids, params, room=0, last_token=token_ids[-1])]
        return pieces[-1].z_logprob

    async def ping(self) -> None:
        """Returns when the decoding thread is between two steps, which shows that it runs."""
        await self._between_steps(lambda: None)

    @property
    def unfinished(self) -> int:
        """Sequences in the engine, running and waiting."""
        return self.engine.get_num_unfinished_requests()

    async def load_weights(self, version: int, chunks: Iterable[WeightChunk]) -> Span:
        """Replace the weights between two decode steps; running requests continue with the new ones.

        A response that has ended gets its score before, from the weights that ended it.

        Returns:
            The time between the two steps.

        Raises:
            Exception: The first chunk could not be read. The engine is as it was; a later failure ends the
                process.
        """
        return await self._between_steps(lambda: self._load_weights(version, chunks))

    async def sleep(self) -> None:
        """Drop running requests and free the GPU's memory, weights too. A CPU engine only stops decoding."""
        await self._between_steps(self._sleep)

    async def wake(self, version: int, chunks: Iterable[WeightChunk]) -> Span:
        """Reserve the memory again and load weights. An awake engine only loads them."""
        return await self._between_steps(lambda: self._load_weights(version, chunks, wakes=True))

    async def _pieces(
        self, prompt_ids: Sequence[int], params: "SamplingParams", room: int, last_token: int
    ) -> AsyncGenerator[Generated, None]:
        """The response to one request, piece by piece.

        Args:
            room: Tokens that the response may have.
            last_token: The response's last token in the prompt, or -1 where the prompt holds no response.
        """
        sink = PieceSink(asyncio.Queue(), asyncio.get_running_loop(), self.settings, room, last_token)
        name = self._name()
        try:
            await self._between_steps(lambda: self._add(name, prompt_ids, params, sink))
            while (piece := await sink.pieces.get()) is not None:
                yield piece
        finally:
            # Not awaited, because a cancelled caller cannot wait. The thread adds the request before it
            # removes it.
            self._commands.put((lambda: self._remove(name), concurrent.futures.Future()))

    def _name(self) -> str:
        """A new request id."""
        return str(next(self._numbers))

    async def _between_steps(self, action: Callable[[], Returned]) -> Returned:
        """Run `action` on the decoding thread, which alone uses the engine; returns and raises as it does."""
        done: concurrent.futures.Future = concurrent.futures.Future()
        self._commands.put((action, done))
        return await asyncio.wrap_future(done)

    def _decode(self) -> None:
        while True:
            try:
                self._run_commands(wait=not self.engine.has_unfinished_requests())
                if not self.engine.has_unfinished_requests():
                    continue
                outputs = self.engine.step()
                advance("a decode step")
                if self.first_token_at is None:
                    self.first_token_at = time.monotonic()
                for output in outputs:
                    self._collect(output)
            except Exception:
                _end_process("the engine failed in a decode step")

    def _run_commands(self, wait: bool) -> None:
        """Run all commands in the queue; with `wait`, at least one."""
        while wait or not self._commands.empty():
            action, done = self._commands.get()
            wait = False
            # After this call the caller can no longer cancel the action.
            if not done.set_running_or_notify_cancel():
                continue
            try:
                value = action()
            except Exception as error:  # the caller's, who waits for `done`
                done.set_exception(error)
            else:
                done.set_result(value)
            advance("a command between decode steps")

    def _add(self, name: str, prompt_ids: Sequence[int], params: "SamplingParams", sink: Sink) -> None:
        self._sinks[name] = sink
        prompt: Any = {"prompt_token_ids": list(prompt_ids), "cache_salt": f"v{self.version}"}
        self.engine.add_request(name, prompt, params)

    def _remove(self, name: str) -> None:
        if self._sinks.pop(name, None) is not None:
            self.engine.abort_request([name])

    def _collect(self, output: Any) -> None:
        # A removed request may still have had a token on its way.
        if sink := self._sinks.get(output.request_id):
            sink.put(output)
            if output.finished:
                del self._sinks[output.request_id]

    def _load_weights(self, version: int, chunks: Iterable[WeightChunk], wakes: bool = False) -> Span:
        from actors.due_scores import read_due_scores

        started = time.time()
        remaining, on_gpu = iter(chunks), self.settings.on_gpu
        chunk = next(remaining, None)  # a lost chunk raises here, before anything has changed
        try:
            if wakes and on_gpu:
                # The KV-cache comes last: the copies of the chunks need room beside the weights.
                self.engine.wake_up(["weights"])
            for output in read_due_scores(self.engine):
                self._collect(output)
            self.engine.collective_rpc("start_weight_update")
            while chunk is not None:
                self.engine.collective_rpc("update_weights", args=(vars(chunk),))
                advance(f"a chunk of the weights of version {version}")
                chunk = next(remaining, None)
            self.engine.collective_rpc("finish_weight_update")
            return_free_memory()  # of the copies through which each layer went
            self.version = version
            self.engine.set_weight_version(str(version))
            # The salt of its version hides a running request's prefix from others; an idle engine frees all
            # at once.
            if not self.engine.has_unfinished_requests() and not self.engine.reset_prefix_cache():
                raise RuntimeError("vLLM kept cached prefixes of older weights")
            if wakes:
                self.engine.wake_up(["kv_cache"] if on_gpu else ["scheduling"])
            return Span("swap weights", started, time.time(), {"version": version})
        except Exception:
            # Its weights may be a mix of two versions, and vLLM refuses to start another update.
            _end_process(f"the engine failed in the middle of its update to weights of version {version}")

    def _sleep(self) -> None:
        self.engine.abort_request(list(self._sinks))
        self._sinks.clear()
        # Level 2 drops the weights: the next `wake` brings newer ones. Level 0 touches no memory.
        self.engine.sleep(level=2 if self.settings.on_gpu else 0)


def _end_process(reason: str) -> NoReturn:
    """Log the current exception and exit. The pool sees the death, and another engine gets the requests."""
    logging.getLogger(__name__).exception("%s; its process ends and is replaced", reason)
    os._exit(1)


def _engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs`, with the user's own merged over them."""
    from vllm.config import WeightTransferConfig

    from actors.last_token import LastTokenProcessor
    from actors.weight_transfer import BACKEND

    kv_cache_gib = settings.kv_cache_gib or (None if settings.on_gpu else CPU_KV_CACHE_GIB)
    arguments: dict[str, Any] = {
        "model": without_patterns(settings.model_path),
        "load_format": "safetensors",  # never a pickle
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.tensor_parallel,
        # One slot for z_c after the longest response.
        "max_model_len": settings.max_prompt_tokens + settings.max_response_tokens + 1,
        "kv_cache_memory_bytes": int(kv_cache_gib * 2**30) if kv_cache_gib else None,
        "skip_tokenizer_init": True,
        # Behaviour log-probs and the score are raw ones; the processor reads tokens that were really sampled.
        "logprobs_mode": "raw_logprobs",
        "async_scheduling": False,
        "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
        "disable_log_stats": True,
    }
    if settings.on_gpu and settings.sleeps:
        # The waiting learner keeps a little of the GPU: its CUDA context, NCCL's buffers, a reference model's
        # shards.
        arguments |= {"enable_sleep_mode": True, "gpu_memory_utilization": 0.8}
    if not settings.on_gpu:
        # vLLM rewinds the generator of a seeded request whose prompt it prefills in parts. A CPU's cannot be
        # rewound.
        arguments |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, arguments["max_model_len"]),
        }
    own = settings.engine_args.get("logits_processors", [])
    # The last one bars z_c from the text, and reads what was really sampled.
    return arguments | settings.engine_args | {"logits_processors": [*own, LastTokenProcessor]}


def _prepare_process(settings: EngineSettings) -> None:
    """Set vLLM's environment before its first import."""
    # In this process, so that weights can change between two steps. V2 of the model runner refuses logits
    # processors.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not settings.on_gpu:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        import torch

        torch.set_num_threads(settings.threads)
