"""The service's Ray Serve applications: the HTTP ingress, and an `engine` application for each model.

In: HTTP. The ingress checks the API key, the body and the limits, and calls a replica of the model
(`replica.EngineReplica`). Out: OpenAI's JSON. `serve deploy` imports the two builders:
experiments/serve/serve.yaml.
"""

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from ray import serve
from starlette.exceptions import HTTPException

from orchestrator.config.serving import INGRESS, IngressConfig, ReplicaConfig
from orchestrator.errors import ConfigError
from orchestrator.serving import answers
from orchestrator.serving.calls import ENGINE, Replicas, StreamedCompletion
from orchestrator.serving.errors import ApiError, too_large
from orchestrator.serving.keys import Keys
from orchestrator.serving.metrics import IngressMetrics, merged
from orchestrator.serving.requests import B, ChatRequest, ScoreRequest, parse

INGRESS_DEPLOYMENT = "ingress"
"""Name of the deployment in the ingress's application."""

app = FastAPI(title="LaSeR", docs_url=None, redoc_url=None, openapi_url=None)


@app.exception_handler(ApiError)
async def _refuse(request: Request, error: ApiError) -> Response:
    # ASCII: a message may repeat half of a surrogate pair, which UTF-8 cannot hold.
    return Response(error.body, error.status, error.headers, "application/json")


@app.exception_handler(HTTPException)
async def _refuse_path(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail.lower() if error.detail else 'refused'}"
    return await _refuse(request, ApiError(error.status_code, message))


@app.exception_handler(Exception)
async def _refuse_unforeseen(request: Request, error: Exception) -> Response:
    # FastAPI raises the error again, so that the log has its traceback.
    message = "an error inside the service; its log says more"
    return await _refuse(request, ApiError(500, message, code="internal_error"))


@serve.ingress(app)
class Ingress:
    """The HTTP endpoints. It keeps no state of a request, so that several ingress replicas may run."""

    def __init__(self, config: IngressConfig) -> None:
        self.config = config
        self.limits = config.limits
        self.keys = Keys.load(config.keys_file, config.key_hashes)
        self.metrics = IngressMetrics()
        self.replicas = Replicas(config.limits, self.metrics)
        self.draining = False

    @app.post("/v1/score")
    async def score(self, request: Request) -> Response:
        body = await self._read(request, ScoreRequest, "score")
        known = ", ".join(self.config.models)
        if len(body.items) > self.limits.items:
            message = f"there are {len(body.items)} items; at most {self.limits.items} go into one request"
            raise self._counted("score", ApiError(422, message, "items"))
        if body.model is None and len(self.config.models) > 1:
            message = f"name the model, since several are served: {known}"
            raise self._counted("score", ApiError(400, message, "model"))
        model = self._known(body.model or self.config.models[0], "score")
        with self.replicas.call("score", model) as call:
            weights, scores = await self.replicas.ask(call, "score", body)
            call.status = 200
            return JSONResponse(answers.scores(model, weights, scores))

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        body = await self._read(request, ChatRequest, "chat")
        if body.n > self.limits.choices:
            message = f"n is {body.n}; this service gives at most {self.limits.choices} choices"
            raise self._counted("chat", ApiError(400, message, "n"))
        if body.laser and body.laser.most_samples > self.limits.samples:
            asked = body.laser.most_samples
            message = f"laser asks for {asked} samples; at most {self.limits.samples} are drawn"
            raise self._counted("chat", ApiError(400, message, "laser"))
        model = self._known(body.model, "chat")
        if body.stream:
            return StreamedCompletion(self.replicas, body, model)
        with self.replicas.call("chat", model) as call:
            answer = await self.replicas.ask(call, "chat", body)
            call.status = 200
            return JSONResponse(answers.completion(body, answer))

    @app.get("/v1/models")
    async def models(self, request: Request) -> Response:
        self._authorise(request, "models")
        found = [answers.model(name, await self.replicas.statuses(name)) for name in self.config.models]
        return JSONResponse({"object": "list", "data": found})

    @app.get("/v1/models/{name}")
    async def model(self, request: Request, name: str) -> Response:
        self._authorise(request, "models")
        model = self._known(name, "models")
        return JSONResponse(answers.model(model, await self.replicas.statuses(model)))

    @app.get("/healthz")
    async def healthz(self) -> Response:
        """200 when an engine of every model answers; needs no key."""
        if self.draining:
            raise self._stopping()
        if missing := [name for name in self.config.models if not await self.replicas.statuses(name)]:
            message = f"no engine answers for {', '.join(missing)}"
            raise ApiError(503, message, code="unavailable", retry_after_s=self.limits.retry_after_s)
        return JSONResponse({"status": "ready", "models": self.config.models})

    @app.get("/metrics")
    async def metrics_page(self, request: Request) -> Response:
        """One page for all replicas of the ingress and of the models."""
        self._authorise(request, "metrics")
        sources = [(INGRESS, INGRESS_DEPLOYMENT, "own_metrics")]
        sources += [(name, ENGINE, "metrics") for name in self.config.models]
        pages: dict[tuple[str, int], str] = {}
        for application, deployment, method in sources:
            texts = await self.replicas.everywhere(application, deployment, method)
            pages |= {(application, number): text for number, text in enumerate(texts)}
        return PlainTextResponse(merged(pages), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def own_metrics(self) -> str:
        """The metrics of this ingress replica as Prometheus text."""
        return self.metrics.text()

    async def drain(self) -> int:
        """Refuse new requests from now on; returns the number of requests in flight in this replica."""
        self.draining = True
        return self.metrics.total_in_flight()

    async def _read(self, request: Request, schema: type[B], endpoint: str) -> B:
        """The parsed body of an authorised request. Raises ApiError."""
        self._authorise(request, endpoint)
        if self.draining:
            raise self._counted(endpoint, self._stopping())
        limits, body = self.limits, bytearray()
        try:
            async with asyncio.timeout(limits.deadline_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limits.body_mib * 2**20:
                        raise too_large(limits.body_mib)
            return parse(bytes(body), schema)
        except TimeoutError:
            message = f"the body did not come within {limits.deadline_s:g} s"
            raise self._counted(endpoint, ApiError(408, message)) from None
        except ApiError as error:
            raise self._counted(endpoint, error) from None

    def _authorise(self, request: Request, endpoint: str) -> None:
        """Raises ApiError 401."""
        given = request.headers.get("authorization")
        if self.keys.admit(given):
            return
        message = (
            "this is no valid API key"
            if given
            else "an API key is needed: send the header Authorization: Bearer KEY"
        )
        raise self._counted(endpoint, ApiError(401, message, code="invalid_api_key"))

    def _known(self, model: str, endpoint: str) -> str:
        """The name of a served model. Raises ApiError 404."""
        if model in self.config.models:
            return model
        message = f"there is no model {model!r}; there is {', '.join(self.config.models)}"
        raise self._counted(endpoint, ApiError(404, message, "model", "model_not_found"))

    def _counted(self, endpoint: str, error: ApiError) -> ApiError:
        """The error, counted without the model: clients could invent names, and each would be a new label."""
        self.metrics.requests.labels(endpoint, "", str(error.status)).inc()
        return error

    def _stopping(self) -> ApiError:
        retry_after_s = self.limits.retry_after_s
        return ApiError(503, "the service is stopping", code="unavailable", retry_after_s=retry_after_s)


def ingress(config: IngressConfig) -> serve.Application:
    """The ingress application.

    Raises:
        ConfigError: There is no API key, and the configuration does not say `open: true`.
    """
    if not config.open and not Keys.load(config.keys_file, config.key_hashes).hashes:
        raise ConfigError(
            "the service would answer anybody: give API keys (keys_file, or LASER_API_KEY), or listen on a "
            "loopback address and, with `serve deploy`, set open: true"
        )
    deployment = serve.deployment(Ingress).options(
        name=INGRESS_DEPLOYMENT,
        num_replicas=config.replicas,
        # The models' own limits answer 429 long before. Requests that wait in a proxy would get errors
        # without JSON.
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": config.cpus},
        graceful_shutdown_timeout_s=config.limits.drain_s,
        max_surge_percent=100,
    )
    return deployment.bind(config)


def engine(config: ReplicaConfig) -> serve.Application:
    """A model's application. All replicas of a new version start before the old ones stop."""
    from orchestrator.serving.replica import STUCK_S, EngineReplica

    settings, limits = config.engine, config.limits
    # More threads than the share are many times slower as soon as another process competes.
    threads = str(max(1, int(settings.cpus)))
    environment = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
    }
    scale: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas and settings.max_replicas > settings.replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": settings.replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": max(1, settings.max_ongoing // 2),
            }
        }
    deployment = serve.deployment(EngineReplica).options(
        name=ENGINE,
        **scale,
        max_ongoing_requests=settings.max_ongoing,
        max_queued_requests=limits.queued,
        ray_actor_options={
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus * settings.tensor_parallel,
            "runtime_env": {"env_vars": environment},
        },
        graceful_shutdown_timeout_s=limits.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=STUCK_S,
        max_surge_percent=100,
    )
    return deployment.bind(config)
