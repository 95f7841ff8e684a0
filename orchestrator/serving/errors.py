"""Errors of the API in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`.

A replica hands an `ApiError` back as a value and the ingress raises it, so that a client's mistake is no failure of the replica.
"""

import json
from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is not answered. `status` is the HTTP status; `param` names the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        super().__init__(status, message, param, code, retry_after_s)
        self.status, self.message, self.param, self.code, self.retry_after_s = (
            status,
            message,
            param,
            code,
            retry_after_s,
        )

    def __str__(self) -> str:
        return self.message

    @property
    def content(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def body(self) -> bytes:
        return json.dumps(self.content).encode()

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def too_large(limit_mib: float) -> ApiError:
    return ApiError(
        413,
        f"the request's body is larger than {limit_mib:g} MiB; send less at a time",
        code="body_too_large",
    )


def malformed(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param)
