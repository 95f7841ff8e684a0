"""What runs in Ray Serve's HTTP proxies: limits on requests, and JSON for the proxies' own errors.

A proxy receives a body as fast as the client sends it, before the ingress sees the request, so that only a
limit in the proxy bounds its memory. Serve calls `middlewares` when RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH
in the controller's environment names it; `controller_environment` and experiments/serve/serve.yaml set that
variable.
"""

import os
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from orchestrator.config.serving import Limits
from orchestrator.serving.connections import LimitedConnection
from orchestrator.serving.errors import ApiError, too_large

VARIABLES = {
    "body_mib": "LASER_MAX_BODY_MIB",
    "head_kib": "LASER_MAX_HEAD_KIB",
    "client_s": "LASER_CLIENT_S",
}
"""Environment variables of the limits that hold in a proxy, by the limit's name."""


def controller_environment(limits: Limits) -> dict[str, str]:
    """Environment variables of the Serve controller, which its proxies inherit."""
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares",
        **{variable: f"{getattr(limits, name):g}" for name, variable in VARIABLES.items()},
    }


def middlewares() -> list[Middleware]:
    """The proxies' middlewares; Ray Serve calls this in each proxy, before its HTTP server starts."""
    given = {name: os.environ[variable] for name, variable in VARIABLES.items() if variable in os.environ}
    limits = LimitedConnection.limits = Limits.model_validate(given)
    # Ray starts uvicorn with the connections that this table names, and has no setting for others.
    HTTP_PROTOCOLS["auto"] = f"{LimitedConnection.__module__}:{LimitedConnection.__name__}"
    return [Middleware(Guard, body_mib=limits.body_mib)]


class Guard:
    """Answers 413 to a body that is too large, and turns the proxy's plain-text errors into OpenAI's form.

    A body counts as it arrives, because its length may be missing or wrong.

    Args:
        app: The proxy.
        body_mib: The largest body in MiB.
    """

    def __init__(self, app: ASGIApp, body_mib: float) -> None:
        self.app = app
        self.body_mib = body_mib

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Serve's own health check, below /-/, is for load balancers and stays as it is.
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self.app(scope, receive, send)
            return
        limit = self.body_mib * 2**20
        stated = Headers(scope=scope).get("content-length", "")
        if stated.isdecimal() and int(stated) > limit:
            await _answer(send, too_large(self.body_mib))
            return
        taken = 0
        answered = refused = replaced = gone = False

        async def limited() -> Message:
            nonlocal taken, refused, gone
            message = await receive()
            taken += len(message.get("body", b""))
            gone = gone or message["type"] == "http.disconnect"
            if taken > limit:
                refused = True
                return {"type": "http.disconnect"}  # The proxy then drops the request.
            return message

        async def outgoing(message: Message) -> None:
            nonlocal answered, replaced
            if message["type"] == "http.response.start":
                answered = True
                kind = Headers(raw=message["headers"]).get("content-type", "")
                if not refused and message["status"] >= 400 and "json" not in kind:
                    replaced = True
                    await _answer(send, _own_error(message["status"], scope["path"]))
            if not replaced and not refused:
                await send(message)

        await self.app(scope, limited, outgoing)
        if refused:
            await _answer(send, too_large(self.body_mib))
        elif not answered and not gone:  # The ingress replica died.
            await _answer(send, _own_error(503, scope["path"]))


def _own_error(status: int, path: str) -> ApiError:
    if status == 404:
        return ApiError(404, f"there is no {path}, or the service has not started yet")
    if status in (429, 408):
        return ApiError(status, "the service is busy; try again", retry_after_s=1)
    return ApiError(
        503,
        "the part of the service that worked on this request was lost; try again",
        code="unavailable",
        retry_after_s=1,
    )


async def _answer(send: Send, error: ApiError) -> None:
    headers: dict[str, Any] = error.headers | {
        "Content-Type": "application/json",
        "Content-Length": str(len(error.body)),
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": error.body})
