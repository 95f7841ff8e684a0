"""The service's endpoints in this process: all of it but Ray Serve and the engine.

An answer that was made beforehand takes the engine's place, so that a thousand requests take seconds.
"""

import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi.responses import Response
from starlette.requests import Request
from transformers import AutoTokenizer

from orchestrator.config.serving import IngressConfig
from orchestrator.messages.requests import EngineSettings
from orchestrator.serving.app import Ingress
from orchestrator.serving.calls import Replicas
from orchestrator.serving.errors import ApiError
from orchestrator.serving.requests import ChatRequest, ScoreRequest
from orchestrator.serving.solutions import Answer, Piece, Solution, SolutionScore, Tally
from orchestrator.serving.tokenized import RequestTokenizer
from orchestrator.storage.card import SelfRewardCard

BASE = Path(__file__).parents[2] / "experiments/quickstart/base"
SOLUTION = Solution("\\boxed{12}", 4, True, False, -22.0, 0.5, [("1", -0.5)])


class LocalService:
    """Answers requests to the model `tiny`, the quick-start's base model with a card."""

    def __init__(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(BASE)
        z_token = tokenizer.get_vocab()["<|self_reward|>"]
        eos = (tokenizer.eos_token_id,)
        card = SelfRewardCard("<|self_reward|>", z_token, -22.0, 0.1, list(eos), "", "")
        settings = EngineSettings(str(BASE), eos, z_token, 380, 120, "float32")
        self.requests = RequestTokenizer("tiny", tokenizer, card, settings, len(tokenizer))
        # `serve.ingress` derives its own class from the endpoints', which needs a replica of Ray Serve.
        self.ingress = Ingress.__bases__[0](IngressConfig(models=["tiny"], open=True))
        self.ingress.replicas = Replicas(self.ingress.limits, self.ingress.metrics, lambda *_: _Handle(self))

    async def post(self, path: str, body: bytes) -> tuple[int, str]:
        """The status and the text of an answer; whatever is no refusal is HTTP 500, as in the service."""
        endpoint = {"chat/completions": self.ingress.chat, "score": self.ingress.score}[path]

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": f"/v1/{path}", "headers": [], "query_string": b""}
        scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}
        try:
            response: Response = await endpoint(Request(scope, receive))
            await response(scope, receive, send)
        except ApiError as error:
            return error.status, error.body.decode()
        except Exception as error:
            return 500, f"{type(error).__name__}: {error}"
        parts = [message.get("body", b"") for message in sent[1:]]
        return sent[0]["status"], b"".join(parts).decode()

    async def chat(self, request: ChatRequest) -> Answer | ApiError:
        """As the replica's, with made-up solutions."""
        try:
            prompt, _ = self.requests.prompt(request)
        except ApiError as error:
            return error
        tally = Tally(request.laser.most_samples, 4, "12", {"12": 1.0}, True) if request.laser else None
        return Answer("weights", len(prompt), [SOLUTION] * (1 if tally else request.n), tally)

    async def score(self, request: ScoreRequest) -> tuple[str, list[SolutionScore]] | ApiError:
        """As the replica's, with made-up scores."""
        try:
            for number, item in enumerate(request.items):
                self.requests.item(item, f"items[{number}]")
        except ApiError as error:
            return error
        return "weights", [SolutionScore(0.5, -22.0, False, True)] * len(request.items)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Answer | Piece | ApiError]:
        """As the replica's, with made-up solutions."""
        answer = await self.chat(request)
        if isinstance(answer, ApiError):
            yield answer
            return
        yield Answer(answer.weights, answer.prompt_tokens, [])
        for index, solution in enumerate(answer.solutions):
            yield Piece(index, solution.text)
            yield Piece(index, solution)


class _Handle:
    """Ray Serve's handle of the replica, in this process; what passes is pickled as between processes."""

    def __init__(self, service: LocalService) -> None:
        self.service = service

    def options(self, stream: bool) -> "_Handle":
        return self

    def __getattr__(self, method: str) -> "_Method":
        return _Method(getattr(self.service, method))


class _Method:
    def __init__(self, call: Callable[[Any], Any]) -> None:
        self.call = call

    def remote(self, body: Any) -> "_Result":
        return _Result(self.call(pickle.loads(pickle.dumps(body))))


class _Result:
    """An awaitable or an iterator, as the method is; `cancel` has nothing to stop."""

    def __init__(self, running: Awaitable[Any] | AsyncIterator[Any]) -> None:
        self.running = running

    def __await__(self) -> Any:
        return self.running.__await__()  # type: ignore[union-attr]

    def __aiter__(self) -> "_Result":
        return self

    async def __anext__(self) -> Any:
        return pickle.loads(pickle.dumps(await anext(self.running)))  # type: ignore[arg-type]

    def cancel(self) -> None:
        pass
