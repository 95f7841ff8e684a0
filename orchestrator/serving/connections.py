"""HTTP connections of Ray Serve's proxies, with limits that uvicorn has not.

In: bytes of any client. Out: whole requests. A client that is slow to send a request or to take its answer,
and one whose headers never end, loses its connection, so that it holds nothing that others need.
"""

from asyncio import TimerHandle, Transport
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from orchestrator.config.serving import Limits
from orchestrator.serving.errors import ApiError


class LimitedConnection(HttpToolsProtocol):
    """A connection that is closed when its request, or the taking of its answer, makes no end.

    Attributes:
        limits: Of all connections of this process.
    """

    limits: ClassVar[Limits] = Limits()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.head_bytes: int | None = 0
        """Bytes of the request's line and headers so far; None once they are complete."""
        self.has_begun = False
        self.request_timer: TimerHandle | None = None
        self.answer_timer: TimerHandle | None = None
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self.request_timer, self.answer_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.has_begun and (self.cycle is None or self.cycle.response_complete):
            self._await_request()  # uvicorn has stopped its own timer, and nothing may follow
        # A single header that never ends reaches no callback.
        if self.head_bytes is not None and not self.transport.is_closing():
            self.head_bytes += len(data)
            if self._head_is_too_large():
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.has_begun = True
        self.head_bytes = 0
        self._await_request()

    def on_headers_complete(self) -> None:
        self.head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._head_is_too_large():
            raise ValueError  # httptools ends the connection by `send_400_response`
        self.head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop(self.request_timer)
        self.request_timer = None
        self.has_begun = False
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._stop(self.request_timer, self.answer_timer)
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.answer_timer = self.loop.call_later(self.limits.client_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop(self.answer_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or has too large a head, and close the connection."""
        if self._head_is_too_large():
            self._refuse(431, f"the request's line and headers have more than {self.limits.head_kib} KiB")
        else:
            self._refuse(400, "this is no HTTP request")

    def _await_request(self) -> None:
        if self.request_timer is None:
            self.request_timer = self.loop.call_later(self.limits.client_s, self._give_up_request)

    def _give_up_request(self) -> None:
        unanswered = self.head_bytes is not None or not self.cycle.response_started
        if self.has_begun and unanswered:
            self._refuse(408, f"the request did not come within {self.limits.client_s:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        error = ApiError(status, message)
        head = (
            f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\n"
            f"content-length: {len(error.body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + error.body)
        self.transport.close()

    def _head_is_too_large(self) -> bool:
        return self.head_bytes is not None and self.head_bytes > self.limits.head_kib * 1024

    @staticmethod
    def _stop(*timers: TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()
