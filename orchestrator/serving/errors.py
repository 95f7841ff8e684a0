"""Errors of the API in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`.

A replica returns an `ApiError` as a value and the ingress raises it, so that a client's mistake is no failure
of the replica.
"""

import json
from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused or failed.

    Args:
        status: HTTP status.
        message: What is wrong and what to do, for a person.
        param: The field at fault.
        code: A word for programs.
        retry_after_s: Seconds after which the client should try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(status, message, param, code, retry_after_s)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    @property
    def content(self) -> dict[str, Any]:
        """The JSON tree of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def body(self) -> bytes:
        """`content` as JSON."""
        return json.dumps(self.content).encode()

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers, apart from those of its body."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def too_large(limit_mib: float) -> ApiError:
    """413: the body exceeds `limit_mib` MiB."""
    return ApiError(
        413,
        f"the request's body is larger than {limit_mib:g} MiB; send less at a time",
        code="body_too_large",
    )


def malformed(message: str, param: str | None = None) -> ApiError:
    """400: the request is wrong, in the field `param`."""
    return ApiError(400, message, param)
