"""The service's two kinds of Ray Serve application: the HTTP ingress, and one `engine` application a model.

In: HTTP. The ingress checks the key, the body and the limits, and calls a replica of the model (`replica.EngineReplica`); a
request whose replica dies is given once to another one, as long as nothing of its answer has been sent. Out: OpenAI's JSON.
The two builders are what `serve deploy` imports: experiments/serve/serve.yaml.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from orchestrator.config.serving import INGRESS, IngressConfig, ReplicaConfig
from orchestrator.errors import ConfigError
from orchestrator.serving import answers
from orchestrator.serving.errors import ApiError, too_large
from orchestrator.serving.keys import Keys
from orchestrator.serving.metrics import IngressMetrics, merged
from orchestrator.serving.requests import B, ChatRequest, ScoreRequest, parse

ENGINE = "engine"
"""Name of the deployment in a model's application."""

_LOST = (RayActorError, ReplicaUnavailableError)
_STATUS_TIMEOUT_S = 5.0

log = logging.getLogger("ray.serve")
app = FastAPI(title="LaSeR", docs_url=None, redoc_url=None, openapi_url=None)


@app.exception_handler(ApiError)
async def _refuse(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.content, error.status, error.headers)


@app.exception_handler(HTTPException)
async def _refuse_path(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail.lower() if error.detail else 'refused'}"
    return await _refuse(request, ApiError(error.status_code, message))


@app.exception_handler(Exception)
async def _refuse_unforeseen(request: Request, error: Exception) -> Response:
    # FastAPI raises it again, so that the log has the traceback.
    return await _refuse(
        request, ApiError(500, "an error inside the service; its log says more", code="internal_error")
    )


class _Call:
    """One request on its way through the ingress: its deadline, and what the metrics say of it."""

    def __init__(self, ingress: "Ingress", endpoint: str, model: str) -> None:
        self.metrics, self.endpoint, self.model = ingress.metrics, endpoint, model
        self.started = time.monotonic()
        self.deadline = self.started + ingress.config.limits.deadline_s
        self.status = 499
        """The client went away, unless another status is set."""

    @property
    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def __enter__(self) -> "_Call":
        self.metrics.in_flight.labels(self.model).inc()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ApiError):
            self.status = error.status
        elif isinstance(error, Exception) and not isinstance(
            error, TaskCancelledError
        ):  # Ray's own word for a client that left
            self.status = 500
        self.metrics.in_flight.labels(self.model).dec()
        self.metrics.requests.labels(self.endpoint, self.model, str(self.status)).inc()
        self.metrics.seconds.labels(self.endpoint, self.model).observe(time.monotonic() - self.started)


class _Stream(Response):
    """A streamed completion; one response, so that its call is counted and ended however the sending ends.

    It stands before `Ingress`, which Serve pickles with what it uses while it is decorated.
    """

    def __init__(self, ingress: Any, body: ChatRequest, model: str) -> None:
        super().__init__()
        self.ingress, self.request, self.model = ingress, body, model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _Call(self.ingress, "chat", self.model) as call:
            opening, pieces = await self.ingress._ask(call, "stream", self.request, stream=True)
            events = self.ingress._events(call, answers.Chunks(self.request, opening), pieces)
            await StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )(scope, receive, send)


@serve.ingress(app)
class Ingress:
    """Keeps no state of a request, so that any number of replicas may run; limits and queues count in each."""

    def __init__(self, config: IngressConfig) -> None:
        self.config = config
        self.keys = Keys.load(config.keys_file, config.key_hashes)
        self.metrics = IngressMetrics()
        self.draining = False
        self._handles: dict[str, DeploymentHandle] = {}
        self._status_of: dict[str, tuple[float, list[dict]]] = {}

    @app.post("/v1/score")
    async def score(self, request: Request) -> Response:
        body = await self._read(request, ScoreRequest, "score")
        limits = self.config.limits
        if len(body.items) > limits.items:
            raise self._refused(
                "score",
                ApiError(
                    422,
                    f"there are {len(body.items)} items; at most {limits.items} go into one request",
                    "items",
                ),
            )
        if body.model is None and len(self.config.models) > 1:
            known = ", ".join(self.config.models)
            raise self._refused(
                "score", ApiError(400, f"name the model, since several are served: {known}", "model")
            )
        model = self._known(body.model or self.config.models[0], "score")
        with _Call(self, "score", model) as call:
            (weights, scores), _ = await self._ask(call, "score", body)
            call.status = 200
            return JSONResponse(answers.scores(model, weights, scores))

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        body = await self._read(request, ChatRequest, "chat")
        limits = self.config.limits
        if body.n > limits.choices:
            raise self._refused(
                "chat",
                ApiError(400, f"n is {body.n}; this service gives at most {limits.choices} choices", "n"),
            )
        if body.laser and body.laser.most_samples > limits.samples:
            drawn = body.laser.most_samples
            raise self._refused(
                "chat",
                ApiError(400, f"laser asks for {drawn} samples; at most {limits.samples} are drawn", "laser"),
            )
        model = self._known(body.model, "chat")
        if body.stream:
            return _Stream(self, body, model)
        with _Call(self, "chat", model) as call:
            answer, _ = await self._ask(call, "chat", body)
            call.status = 200
            return JSONResponse(answers.completion(body, answer))

    @app.get("/v1/models")
    async def models(self, request: Request) -> Response:
        self._authorise(request, "models")
        found = [answers.model(name, await self._statuses(name)) for name in self.config.models]
        return JSONResponse({"object": "list", "data": found})

    @app.get("/v1/models/{name}")
    async def model(self, request: Request, name: str) -> Response:
        self._authorise(request, "models")
        return JSONResponse(answers.model(self._known(name, "models"), await self._statuses(name)))

    @app.get("/healthz")
    async def healthz(self) -> Response:
        """Ready when an engine of every model answers; needs no key."""
        missing = [name for name in self.config.models if not await self._statuses(name)]
        if self.draining or missing:
            reason = (
                "the service is stopping" if self.draining else f"no engine answers for {', '.join(missing)}"
            )
            raise ApiError(503, reason, code="unavailable", retry_after_s=self.config.limits.retry_after_s)
        return JSONResponse({"status": "ready", "models": self.config.models})

    @app.get("/metrics")
    async def metrics_page(self, request: Request) -> Response:
        self._authorise(request, "metrics")
        texts = {
            (INGRESS, number): text
            for number, text in enumerate(await self._everywhere(INGRESS, "ingress", "own_metrics"))
        }
        for name in self.config.models:
            texts |= {
                (name, number): text
                for number, text in enumerate(await self._everywhere(name, ENGINE, "metrics"))
            }
        return PlainTextResponse(merged(texts), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def own_metrics(self) -> str:
        return self.metrics.text()

    async def drain(self) -> int:
        """Take no new requests; returns how many are still in flight here."""
        self.draining = True
        return self.metrics.total_in_flight()

    async def _events(self, call: _Call, chunks: answers.Chunks, pieces: Any) -> AsyncIterator[str]:
        try:
            for event in chunks.opening():
                yield event
            async with asyncio.timeout(call.left_s):
                async for piece in pieces:
                    for event in chunks.piece(piece):
                        yield event
            for event in chunks.end():
                yield event
            call.status = 200
        except (*_LOST, RayTaskError, TimeoutError) as error:
            # Part of the answer is out: it cannot be given to another replica, only be broken off where the client sees it.
            refusal = self._explain(error)
            call.status = refusal.status
            yield f"data: {refusal.body.decode()}\n\n"
        finally:
            pieces.cancel()

    async def _read(self, request: Request, schema: type[B], endpoint: str) -> B:
        """The request's body, authorised, within its limit and valid. Raises ApiError."""
        self._authorise(request, endpoint)
        if self.draining:
            raise self._refused(
                endpoint,
                ApiError(
                    503, "the service is stopping", code="unavailable", retry_after_s=self._retry_after_s
                ),
            )
        limits, body = self.config.limits, bytearray()
        try:
            async with asyncio.timeout(limits.deadline_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limits.body_mib * 2**20:
                        raise too_large(limits.body_mib)
            return parse(bytes(body), schema)
        except TimeoutError:
            raise self._refused(
                endpoint, ApiError(408, f"the body did not come within {limits.deadline_s:g} s")
            ) from None
        except ApiError as error:
            raise self._refused(endpoint, error) from None

    def _authorise(self, request: Request, endpoint: str) -> None:
        given = request.headers.get("authorization")
        if self.keys.admit(given):
            return
        why = (
            "this is no valid API key"
            if given
            else "an API key is needed: send the header Authorization: Bearer KEY"
        )
        raise self._refused(endpoint, ApiError(401, why, code="invalid_api_key"))

    def _known(self, model: str, endpoint: str) -> str:
        if model in self.config.models:
            return model
        known = ", ".join(self.config.models)
        raise self._refused(
            endpoint,
            ApiError(404, f"there is no model {model!r}; there is {known}", "model", "model_not_found"),
        )

    def _refused(self, endpoint: str, error: ApiError) -> ApiError:
        """Counted; a name that no model has would make a metric without bounds."""
        self.metrics.requests.labels(endpoint, "", str(error.status)).inc()
        return error

    @property
    def _retry_after_s(self) -> int:
        return self.config.limits.retry_after_s

    async def _ask(self, call: _Call, method: str, body: Any, stream: bool = False) -> tuple[Any, Any]:
        """A replica's answer, the first piece of it with `stream`, and the response that it came by.

        Another replica is asked once when the first one dies. Raises ApiError.
        """
        for attempt in ("first", "last"):
            try:
                handle = self._handle(call.model)
                response = getattr(handle.options(stream=True) if stream else handle, method).remote(body)
                try:
                    async with asyncio.timeout(call.left_s):
                        answer = await (anext(response) if stream else response)
                except BaseException:
                    response.cancel()  # takes the request out of the engine: nobody waits for it any more
                    raise
            except (*_LOST, RayServeException, RayTaskError, TimeoutError) as error:
                if isinstance(error, _LOST) and attempt == "first":
                    self.metrics.retries.labels(call.model).inc()
                    continue
                raise self._explain(error) from None
            if isinstance(answer, ApiError):
                raise answer
            return answer, response
        raise AssertionError("the last attempt returns or raises")

    def _explain(self, error: BaseException) -> ApiError:
        """What went wrong on the way to a replica, for the client; no traceback, which the log has."""
        again = self._retry_after_s
        if isinstance(error, BackPressureError):
            waiting = self.config.limits.queued
            return ApiError(
                429,
                f"{waiting} requests wait already; try again later",
                code="overloaded",
                retry_after_s=again,
            )
        if isinstance(error, TimeoutError):
            return ApiError(
                504,
                f"not answered within {self.config.limits.deadline_s:g} s; ask for less",
                code="deadline_exceeded",
            )
        if isinstance(error, (*_LOST, DeploymentUnavailableError)):
            return ApiError(
                503, "the model's replica was lost; try again", code="unavailable", retry_after_s=again
            )
        if isinstance(error, RayServeException):  # the model's application is not there (yet)
            return ApiError(
                503, "the model is not ready; try again later", code="unavailable", retry_after_s=again
            )
        log.error("a replica failed on a request: %s", error)
        return ApiError(500, "an error inside the service; its log says more", code="internal_error")

    def _handle(self, model: str) -> DeploymentHandle:
        if model not in self._handles:
            self._handles[model] = serve.get_deployment_handle(ENGINE, app_name=model)
        return self._handles[model]

    async def _statuses(self, model: str) -> list[dict]:
        """What each replica of a model says of itself; asked at most once a second, since anybody may ask for /healthz."""
        asked, statuses = self._status_of.get(model, (0.0, []))
        if time.monotonic() - asked > 1.0:
            statuses = await self._everywhere(model, ENGINE, "status")
            self._status_of[model] = (time.monotonic(), statuses)
        return statuses

    async def _everywhere(self, application: str, deployment: str, method: str) -> list[Any]:
        """What `method` returns on each replica that answers soon. A broadcast does not stand in the queue, so overload is no illness."""
        try:
            handle = (
                serve.get_deployment_handle(deployment, app_name=INGRESS)
                if application == INGRESS
                else self._handle(application)
            )
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                values = await handle.broadcast(method).results_async(return_exceptions=True)
        except (TimeoutError, RayServeException):
            return []
        return [value for value in values if not isinstance(value, BaseException)]


def ingress(config: IngressConfig) -> serve.Application:
    """The ingress application. Raises ConfigError when it would answer without a key and is not said to be open."""
    if not config.open and not Keys.load(config.keys_file, config.key_hashes).hashes:
        raise ConfigError(
            "the service would answer anybody: give API keys (keys_file, or LASER_API_KEY), or listen on a loopback address and, "
            "with `serve deploy`, set open: true"
        )
    return (
        serve.deployment(Ingress)
        .options(
            name="ingress",
            num_replicas=config.replicas,
            # The models' own limits answer 429 long before; what waits in a proxy would have no JSON.
            max_ongoing_requests=100_000,
            ray_actor_options={"num_cpus": config.cpus},
            graceful_shutdown_timeout_s=config.limits.drain_s,
            max_surge_percent=100,
        )
        .bind(config)
    )


def engine(config: ReplicaConfig) -> serve.Application:
    """A model's application: a new version starts all its replicas before the old ones stop."""
    from orchestrator.serving.replica import ILL_S, EngineReplica

    settings, limits = config.engine, config.limits
    threads = str(max(1, int(settings.cpus)))
    most = settings.max_replicas or settings.replicas
    scale: dict[str, Any] = {"num_replicas": settings.replicas}
    if most > settings.replicas:
        target = max(1, settings.max_ongoing // 2)
        scale = {
            "autoscaling_config": {
                "min_replicas": settings.replicas,
                "max_replicas": most,
                "target_ongoing_requests": target,
            }
        }
    return (
        serve.deployment(EngineReplica)
        .options(
            name=ENGINE,
            **scale,
            max_ongoing_requests=settings.max_ongoing,
            max_queued_requests=limits.queued,
            ray_actor_options={
                "num_cpus": settings.cpus,
                "num_gpus": settings.gpus * settings.tensor_parallel,
                # More threads than the share are many times slower as soon as another process competes.
                "runtime_env": {
                    "env_vars": {
                        "OMP_NUM_THREADS": threads,
                        "MKL_NUM_THREADS": threads,
                        "TOKENIZERS_PARALLELISM": "false",
                    }
                },
            },
            graceful_shutdown_timeout_s=limits.drain_s,
            graceful_shutdown_wait_loop_s=0.5,
            health_check_period_s=5,
            health_check_timeout_s=ILL_S,
            max_surge_percent=100,
        )
        .bind(config)
    )
