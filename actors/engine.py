"""A vLLM engine driven by one thread: groups of samples with behaviour log-probs and the score in the same generation."""

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from orchestrator.messages.requests import CPU_KV_CACHE_GIB, EngineSettings, GroupRequest, SampleRequest
from orchestrator.messages.trajectories import Generated, GroupSummary, Trajectories, pack
from orchestrator.messages.weights import WeightChunk


@dataclass
class _Sample:
    """A request of a service while it runs: the pieces of its response go to `pieces`, None after the last."""

    pieces: asyncio.Queue[Generated | None]
    loop: asyncio.AbstractEventLoop
    room: int
    """Tokens that the response may still have."""
    last_token: int

    def put(self, output: Any, settings: EngineSettings) -> None:
        piece = read_output(
            output.outputs[0], replace(settings, max_response_tokens=self.room), self.last_token
        )
        self.room -= len(piece.response_ids)
        self.last_token = piece.response_ids[-1] if piece.response_ids else self.last_token
        for item in (piece, None) if output.finished else (piece,):
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, item)


@dataclass
class _Group:
    request: GroupRequest
    done: asyncio.Future
    loop: asyncio.AbstractEventLoop
    missing: int
    samples: list[Generated | None]


class Engine:
    """A vLLM engine that a thread of its process decodes with.

    An engine that fails in a decode step or in the middle of a weight update ends its process: its state is unknown then.
    """

    def __init__(self, settings: EngineSettings) -> None:
        from actors.last_token import LastTokenProcessor
        from actors.weight_transfer import BACKEND

        _prepare_process(settings)
        from transformers import AutoTokenizer
        from vllm import EngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.v1.engine.llm_engine import LLMEngine

        kv_cache_gib = settings.kv_cache_gib or (None if settings.on_gpu else CPU_KV_CACHE_GIB)
        arguments: dict[str, Any] = {
            "model": settings.model_path,
            "dtype": settings.dtype,
            "tensor_parallel_size": settings.tensor_parallel,
            # One slot for z_c after the longest response.
            "max_model_len": settings.max_prompt_tokens + settings.max_response_tokens + 1,
            "kv_cache_memory_bytes": int(kv_cache_gib * 2**30) if kv_cache_gib else None,
            "skip_tokenizer_init": True,
            # Behaviour log-probs and the score are raw ones; the processor reads tokens that were really sampled.
            "logprobs_mode": "raw_logprobs",
            "async_scheduling": False,
            "logits_processors": [LastTokenProcessor],
            "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
            "disable_log_stats": True,
        }
        if settings.on_gpu and settings.sleeps:
            # The learner leaves a little on the GPU while it waits: its CUDA context, NCCL's buffers, a reference model's shards.
            arguments |= {"enable_sleep_mode": True, "gpu_memory_utilization": 0.8}
        if not settings.on_gpu:
            # A CPU generator cannot be rewound, which is what vLLM does to a seeded request whose prompt it prefills in parts.
            arguments |= {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(4096, arguments["max_model_len"]),
            }
        self.settings = settings
        self.tokenizer = AutoTokenizer.from_pretrained(settings.model_path)
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments | settings.engine_args))
        self.version = -1
        self._groups: dict[str, tuple[_Group, int]] = {}
        self._samples: dict[str, _Sample] = {}
        self._requests = 0
        self._sample_numbers = itertools.count()
        self._commands: queue.SimpleQueue[tuple[Callable[[], None], concurrent.futures.Future]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._decode, name="decode", daemon=True).start()

    async def generate(self, request: GroupRequest) -> tuple[Trajectories, list[str], GroupSummary]:
        """Sample a group; texts leave out special tokens. Returns when its last sample has ended."""
        loop = asyncio.get_running_loop()
        group = _Group(request, loop.create_future(), loop, request.num_samples, [None] * request.num_samples)
        await self._between_steps(lambda: self._add(group))
        samples = await group.done
        trajectories = pack(request.prompt_ids, samples)
        texts = self.tokenizer.batch_decode([s.response_ids for s in samples], skip_special_tokens=True)
        return trajectories, texts, trajectories.summary()

    async def sample(self, request: SampleRequest) -> AsyncGenerator[Generated, None]:
        """Sample one solution, in pieces: each holds what is new, and the last one tells whether it finished and its `z_logprob`.

        Leaving the iteration early, or its cancellation, takes the request out of the engine.
        """
        params = self._sampling(
            GroupRequest(request.prompt_ids, 1, request.seed, request.temperature), request.seed
        )
        params.top_p = request.top_p
        params.max_tokens = request.max_response_tokens + int(self.settings.z_token is not None)
        if request.stream:
            params.output_kind = type(params.output_kind).DELTA
        async with contextlib.aclosing(
            self._pieces(request.prompt_ids, params, request.max_response_tokens, last_token=-1)
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def score(self, token_ids: Sequence[int]) -> float:
        """Natural log pi(z_c | token_ids), by one prefill and one decode step. `token_ids` are prompt and response, EOS included."""
        from actors.last_token import sampling_extra_args

        settings = self.settings
        if settings.z_token is None or token_ids[-1] not in settings.eos_tokens:
            raise ValueError(
                "only a response that ends in an EOS token has a score, and only of a model with a score token"
            )
        params = self._sampling(GroupRequest(token_ids, 1, seed=0), seed=0)
        params.max_tokens = 1
        params.extra_args = sampling_extra_args(
            settings.z_token, list(settings.eos_tokens), response_given=True
        )
        pieces = [piece async for piece in self._pieces(token_ids, params, room=0, last_token=token_ids[-1])]
        return pieces[-1].z_logprob

    async def ping(self) -> None:
        """Returns when the decoding thread has come between two steps: it decodes."""
        await self._between_steps(lambda: None)

    @property
    def unfinished(self) -> int:
        """Sequences in the engine, running and waiting."""
        return self.engine.get_num_unfinished_requests()

    async def load_weights(self, version: int, chunks: "Iterable[WeightChunk]") -> int:
        """Replace the weights between two decode steps; requests in flight go on with the new ones. Returns `version`.

        Raises what the first chunk raises, which leaves the engine as it was. A later failure ends the process.
        """
        await self._between_steps(lambda: self._load_weights(version, chunks))
        return version

    async def sleep(self) -> None:
        """Free the GPU's memory, weights included; what runs is dropped. On CPU, where vLLM frees nothing, it only stops decoding."""
        await self._between_steps(self._sleep)

    async def wake(self, version: int, chunks: "Iterable[WeightChunk]") -> int:
        """Take the memory back and load weights; returns `version`. An engine that is awake loads them only."""
        await self._between_steps(lambda: self._load_weights(version, chunks, wakes=True))
        return version

    async def _pieces(
        self, prompt_ids: Sequence[int], params: Any, room: int, last_token: int
    ) -> AsyncGenerator[Generated, None]:
        """The response to one request of a service, as the engine puts it out."""
        sample = _Sample(asyncio.Queue(), asyncio.get_running_loop(), room, last_token)
        name = f"sample-{next(self._sample_numbers)}"

        def add() -> None:
            self._samples[name] = sample
            self.engine.add_request(name, self._prompt(prompt_ids), params)

        try:
            await self._between_steps(add)
            while (piece := await sample.pieces.get()) is not None:
                yield piece
        finally:
            # Not awaited: whoever is cancelled has no time. The thread adds before it takes out, so nothing stays behind.
            self._commands.put((lambda: self._take_out(name), concurrent.futures.Future()))

    def _take_out(self, name: str) -> None:
        if self._samples.pop(name, None) is not None:
            self.engine.abort_request([name])

    async def _between_steps(self, action: Callable[[], None]) -> None:
        """Have the decoding thread, which alone touches the engine, run `action`; raises what it raises."""
        done: concurrent.futures.Future = concurrent.futures.Future()
        self._commands.put((action, done))
        await asyncio.wrap_future(done)

    def _decode(self) -> None:
        while True:
            try:
                self._run_commands(wait=not self.engine.has_unfinished_requests())
                for output in self.engine.step() if self.engine.has_unfinished_requests() else []:
                    self._collect(output)
            except Exception:
                _end_process("the engine failed in a decode step")

    def _run_commands(self, wait: bool) -> None:
        """Run all that wait; with `wait`, at least one."""
        while wait or not self._commands.empty():
            action, done = self._commands.get()
            wait = False
            if (
                not done.set_running_or_notify_cancel()
            ):  # whoever asked was cancelled; from here on it cannot be
                continue
            try:
                action()
            except Exception as error:  # it belongs to whoever asked for the action
                done.set_exception(error)
            else:
                done.set_result(None)

    def _load_weights(self, version: int, chunks: "Iterable[WeightChunk]", wakes: bool = False) -> None:
        remaining, on_gpu = iter(chunks), self.settings.on_gpu
        chunk = next(remaining, None)  # a lost one raises before anything has changed
        try:
            if wakes and on_gpu:
                self.engine.wake_up(
                    ["weights"]
                )  # not yet the KV-cache: beside it the chunks' copies need room
            self.engine.collective_rpc("start_weight_update")
            while chunk is not None:
                self.engine.collective_rpc("update_weights", args=(vars(chunk),))
                chunk = next(remaining, None)
            self.engine.collective_rpc("finish_weight_update")
            self.version = version
            self.engine.set_weight_version(str(version))
            # Prefixes of a running request are kept from others by their version's salt; an idle engine frees them at once.
            if not self.engine.has_unfinished_requests() and not self.engine.reset_prefix_cache():
                raise RuntimeError("vLLM kept cached prefixes of older weights")
            if wakes:
                self.engine.wake_up(["kv_cache"] if on_gpu else ["scheduling"])
        except Exception:
            # Its weights may be a mix of two versions, and vLLM refuses to start another update.
            _end_process(f"the engine failed in the middle of its update to weights of version {version}")

    def _sleep(self) -> None:
        self.engine.abort_request([*self._groups, *self._samples])
        self._groups.clear()
        self._samples.clear()
        # Level 2 drops the weights: newer ones come with the next wake. Level 0 touches no memory.
        self.engine.sleep(level=2 if self.settings.on_gpu else 0)

    def _add(self, group: _Group) -> None:
        request = group.request
        prompt = self._prompt(request.prompt_ids)
        for index in range(request.num_samples):
            name = f"{self._requests}"
            self._requests += 1
            self._groups[name] = (group, index)
            self.engine.add_request(name, prompt, self._sampling(request, request.seed + index))

    def _prompt(self, prompt_ids: Sequence[int]) -> dict[str, Any]:
        return {"prompt_token_ids": list(prompt_ids), "cache_salt": f"v{self.version}"}

    def _sampling(self, request: GroupRequest, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from actors.last_token import sampling_extra_args

        settings = self.settings
        scored = settings.z_token is not None
        return SamplingParams(
            temperature=request.temperature,
            seed=seed % 2**63,
            max_tokens=settings.max_response_tokens + int(scored),
            ignore_eos=True,
            stop_token_ids=[settings.z_token] if settings.z_token is not None else list(settings.eos_tokens),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=sampling_extra_args(settings.z_token, list(settings.eos_tokens))
            if settings.z_token is not None
            else None,
        )

    def _collect(self, output: Any) -> None:
        if output.request_id.startswith("sample-"):
            # One that was taken out may have had a token on its way.
            if sample := self._samples.get(output.request_id):
                sample.put(output, self.settings)
                if output.finished:
                    del self._samples[output.request_id]
            return
        group, index = self._groups.pop(output.request_id)
        group.samples[index] = read_output(output.outputs[0], self.settings)
        group.missing -= 1
        if group.missing == 0:
            group.loop.call_soon_threadsafe(group.done.set_result, group.samples)


def _end_process(reason: str) -> NoReturn:
    """Log the exception that is being handled and exit: the pool sees the death, starts another engine and gives it the groups."""
    logging.getLogger(__name__).exception("%s; its process ends and is replaced", reason)
    os._exit(1)


def read_output(output: Any, settings: EngineSettings, last_token: int = -1) -> Generated:
    """Split what vLLM sampled into response, behaviour log-probs and the score's log-prob; `last_token` is what it sampled before."""
    token_ids, logprobs = list(output.token_ids), list(output.logprobs.logprobs)
    z_logprob = float("nan")
    if settings.z_token is not None and token_ids[-1:] == [settings.z_token]:
        token_ids.pop()
        z_logprob = logprobs.pop()
    # A request has one token more than a response may have: room for z_c. Without z_c there the token is not the response's.
    token_ids, logprobs = token_ids[: settings.max_response_tokens], logprobs[: settings.max_response_tokens]
    finished = (token_ids[-1] if token_ids else last_token) in settings.eos_tokens
    versions = [int(span.version) for span in output.weight_versions or () if span.version != "default"]
    return Generated(
        token_ids, logprobs, finished, z_logprob, (min(versions, default=-1), max(versions, default=-1))
    )


def _prepare_process(settings: EngineSettings) -> None:
    # In this process, so that weights can change between two steps; V2 of the model runner refuses logits processors.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not settings.on_gpu:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        import torch

        torch.set_num_threads(settings.threads)
