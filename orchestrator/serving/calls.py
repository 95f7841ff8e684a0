"""The ingress's calls of replicas: deadlines, one retry, metrics, and failures as the client sees them."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

from fastapi.responses import Response, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from starlette.types import Receive, Scope, Send

from orchestrator.config.serving import Limits
from orchestrator.serving.answers import Chunks
from orchestrator.serving.errors import ApiError
from orchestrator.serving.metrics import IngressMetrics
from orchestrator.serving.requests import ChatRequest

ENGINE = "engine"
"""Name of the deployment in a model's application."""
CLIENT_LEFT = 499
"""The status that metrics give to a request whose client went away."""
STATUS_TIMEOUT_S = 5.0
STATUS_MAX_AGE_S = 1.0
"""Statuses are cached this long, because anybody may ask for /healthz."""

_LOST = (RayActorError, ReplicaUnavailableError)

log = logging.getLogger("ray.serve")


class Call:
    """One request to a model: its deadline, and the metrics that count it."""

    def __init__(self, metrics: IngressMetrics, endpoint: str, model: str, deadline_s: float) -> None:
        self.metrics = metrics
        self.endpoint = endpoint
        self.model = model
        self.started = time.monotonic()
        self.deadline = self.started + deadline_s
        self.status = CLIENT_LEFT
        """The HTTP status that the client receives."""

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())

    def __enter__(self) -> "Call":
        self.metrics.in_flight.labels(self.model).inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, ApiError):
            self.status = error.status
        # Ray raises TaskCancelledError when a client leaves.
        elif isinstance(error, Exception) and not isinstance(error, TaskCancelledError):
            self.status = 500
        self.metrics.in_flight.labels(self.model).dec()
        self.metrics.requests.labels(self.endpoint, self.model, str(self.status)).inc()
        self.metrics.seconds.labels(self.endpoint, self.model).observe(time.monotonic() - self.started)


@functools.cache
def deployment_handle(application: str, deployment: str) -> Any:
    """Ray Serve's handle of a deployment.

    Raises:
        RayServeException: The application does not run.
    """
    return serve.get_deployment_handle(deployment, app_name=application)


class Replicas:
    """The replicas of all served models.

    Args:
        handle: Gives Ray Serve's handle of a deployment, by application and deployment.
    """

    def __init__(
        self,
        limits: Limits,
        metrics: IngressMetrics,
        handle: Callable[[str, str], Any] = deployment_handle,
    ) -> None:
        self.limits = limits
        self.metrics = metrics
        self.handle = handle
        self._statuses: dict[str, tuple[float, list[dict[str, Any]]]] = {}

    def call(self, endpoint: str, model: str) -> Call:
        """A call that starts now; use it as a context."""
        return Call(self.metrics, endpoint, model, self.limits.deadline_s)

    async def ask(self, call: Call, method: str, body: Any) -> Any:
        """The result of `method` on one replica; a second replica is asked when the first one dies.

        Raises:
            ApiError: The replica refuses the request, or the failure as `explain` puts it.
        """
        result, _ = await self._ask(call, method, body, stream=False)
        return result

    async def open(self, call: Call, method: str, body: Any) -> tuple[Any, Any]:
        """The first piece of a streaming `method`, and Ray Serve's iterator over the other pieces.

        Raises:
            ApiError: As `ask`.
        """
        return await self._ask(call, method, body, stream=True)

    async def statuses(self, model: str) -> list[dict[str, Any]]:
        """The status of each replica of a model that answers, at most `STATUS_MAX_AGE_S` old."""
        asked, statuses = self._statuses.get(model, (-STATUS_MAX_AGE_S, []))
        if time.monotonic() - asked > STATUS_MAX_AGE_S:
            statuses = await self.everywhere(model, ENGINE, "status")
            self._statuses[model] = (time.monotonic(), statuses)
        return statuses

    async def everywhere(self, application: str, deployment: str, method: str) -> list[Any]:
        """The result of `method` on each replica that answers within `STATUS_TIMEOUT_S`.

        A broadcast does not wait in the queue of requests, so that an overloaded replica still answers.
        """
        try:
            handle = self.handle(application, deployment)
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                values = await handle.broadcast(method).results_async(return_exceptions=True)
        except (TimeoutError, RayServeException):
            return []
        return [value for value in values if not isinstance(value, BaseException)]

    def explain(self, error: BaseException) -> ApiError:
        """A failed call as an error for the client, without a traceback, which the log has."""
        retry_after_s = self.limits.retry_after_s
        if isinstance(error, BackPressureError):
            message = f"{self.limits.queued} requests wait already; try again later"
            return ApiError(429, message, code="overloaded", retry_after_s=retry_after_s)
        if isinstance(error, TimeoutError):
            message = f"not answered within {self.limits.deadline_s:g} s; ask for less"
            return ApiError(504, message, code="deadline_exceeded")
        if isinstance(error, (*_LOST, DeploymentUnavailableError)):
            message = "the model's replica was lost; try again"
            return ApiError(503, message, code="unavailable", retry_after_s=retry_after_s)
        if isinstance(error, RayServeException):  # The model's application does not run (yet).
            message = "the model is not ready; try again later"
            return ApiError(503, message, code="unavailable", retry_after_s=retry_after_s)
        log.error("a replica failed on a request: %s", error)
        return ApiError(500, "an error inside the service; its log says more", code="internal_error")

    async def _ask(self, call: Call, method: str, body: Any, stream: bool) -> tuple[Any, Any]:
        for attempt in ("first", "last"):
            try:
                handle = self.handle(call.model, ENGINE)
                response = getattr(handle.options(stream=True) if stream else handle, method).remote(body)
                try:
                    async with asyncio.timeout(call.left_s):
                        result = await (anext(response) if stream else response)
                except BaseException:
                    response.cancel()  # Takes the request out of the engine: nobody waits for it.
                    raise
            except (*_LOST, RayServeException, RayTaskError, TimeoutError) as error:
                if isinstance(error, _LOST) and attempt == "first":
                    self.metrics.retries.labels(call.model).inc()
                    continue
                raise self.explain(error) from None
            if isinstance(result, ApiError):
                raise result
            return result, response
        raise AssertionError("the last attempt returns or raises")


class StreamedCompletion(Response):
    """The response to a streamed chat request.

    It makes the call itself, so that the call is counted and cancelled however the sending ends.
    """

    def __init__(self, replicas: Replicas, request: ChatRequest, model: str) -> None:
        super().__init__()
        self.replicas = replicas
        self.request = request
        self.model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.replicas.call("chat", self.model) as call:
            opening, pieces = await self.replicas.open(call, "stream", self.request)
            events = self._events(call, Chunks(self.request, opening), pieces)
            response = StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
            await response(scope, receive, send)

    async def _events(self, call: Call, chunks: Chunks, pieces: Any) -> AsyncIterator[str]:
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
            # The client has a part of the answer. Another replica cannot continue it, so the stream ends with
            # an error.
            refusal = self.replicas.explain(error)
            call.status = refusal.status
            yield f"data: {refusal.body.decode()}\n\n"
        finally:
            pieces.cancel()
