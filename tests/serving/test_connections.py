"""Hostile connections, to a real HTTP server: limits hold, and healthy clients are answered meanwhile."""

import contextlib
import json
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from orchestrator.config.serving import Limits
from orchestrator.serving.connections import LimitedConnection
from orchestrator.serving.proxy import Guard, controller_environment, middlewares

LIMITS = Limits(head_kib=16, client_s=1.0, body_mib=0.25)
FLOOD = 1000
"""Connections at a time; `python -m benchmarks.connections` makes 10,000."""


def application():
    app = FastAPI()

    @app.post("/v1/score")
    async def score(request: Request) -> dict[str, int]:
        try:
            return {"bytes": len(await request.body())}
        except ClientDisconnect:  # Ray's proxy drops such a request, and raises nothing
            return {}

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        def pieces():
            for _ in range(10_000):
                yield b"x" * 65536

        return StreamingResponse(pieces(), media_type="application/json")

    return Guard(app, body_mib=LIMITS.body_mib)


@pytest.fixture(scope="module")
def address():
    kept, LimitedConnection.limits = LimitedConnection.limits, LIMITS
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        application(), http=LimitedConnection, lifespan="off", log_level="critical", timeout_keep_alive=60
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join(30)
    LimitedConnection.limits = kept


@contextlib.contextmanager
def connected(address, sent=b"", wait_s=20.0):
    with socket.create_connection(address, timeout=wait_s) as connection:
        connection.sendall(sent)
        yield connection


def answer(connection):
    """Everything until the server closes the connection: the status and the JSON, or None for no byte."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    if not received:
        return None
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"application/json" in head
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def healthy(address):
    host, port = address
    found = httpx.post(f"http://{host}:{port}/v1/score", content=b"1234", timeout=20)
    assert found.json() == {"bytes": 4}


LATE = "the request did not come within 1 s"
LARGE = "the request's line and headers have more than 16 KiB"
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", None),
        (b"\r\n", None),
        (b"POST /v1/sc", (408, LATE)),
        (HEAD, (408, LATE)),
        (HEAD + b"Content-Length: 10\r\n\r\n123", (408, LATE)),
        (
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\n123\r\n",
            (408, LATE),
        ),
        (HEAD + b"a: b\r\n" * 5000 + b"\r\n", (431, LARGE)),
        (b"GET /" + b"a" * 20_000, (431, LARGE)),
        (HEAD + b"a: " + b"b" * 20_000, (431, LARGE)),
        (b"\x16\x03\x01 not HTTP\r\n\r\n", (400, "this is no HTTP request")),
    ],
)
def test_a_request_that_does_not_end_is_refused_and_its_connection_closed(address, sent, expected):
    with connected(address, sent) as connection:
        assert answer(connection) == expected
    healthy(address)


def test_headers_that_come_slowly_add_up(address):
    with connected(address, HEAD) as connection:
        with contextlib.suppress(OSError):
            for number in range(100):
                connection.sendall(b"a%d: %s\r\n" % (number, b"b" * 1000))
        assert answer(connection)[0] == 431


def test_a_line_after_an_answer_does_not_keep_a_connection_for_ever(address):
    request = HEAD + b"Content-Length: 4\r\n\r\n1234"
    with connected(address, request) as connection:
        assert b'{"bytes":4}' in connection.recv(65536)
        connection.sendall(request)
        assert b'{"bytes":4}' in connection.recv(65536), "a connection serves several requests"
        connection.sendall(b"\r\n")
        began = time.monotonic()
        assert connection.recv(65536) == b""
        assert time.monotonic() - began < 15, "before uvicorn would end it"


def test_a_body_without_an_end_is_cut_off(address):
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with connected(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        received = b""
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                connection.sendall(chunk)
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    received += connection.recv(65536)
                connection.setblocking(True)
            pytest.fail("6 GB were taken")
    assert b"413" in received.partition(b"\r\n")[0]
    healthy(address)


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(address):
    with connected(address, b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        healthy(address)
        time.sleep(2.5)
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(2**20):
                taken += len(piece)
        assert taken < 10_000 * 65536


def test_a_flood_of_connections_that_send_nothing_or_half_a_request_is_shed(address):
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(connected(address, HEAD if number % 2 else b"")) for number in range(FLOOD)
        ]
        healthy(address)
        statuses = {answer(connection) for connection in held}
    assert statuses == {None, (408, LATE)}
    healthy(address)


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "//v1//score", "/v1/%2e%2e/%2fmetrics", "/v1/\x7f", "/%00", "/%ff", "/" * 9000],
)
def test_tricks_with_paths_find_nothing(address, path):
    with connected(
        address, b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    ) as found:
        head = b""
        while piece := found.recv(65536):
            head += piece
    assert head.split()[1] in (b"404", b"400")
    healthy(address)


def test_the_limits_reach_the_proxies(monkeypatch):
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "set back after the test")
    monkeypatch.setattr(LimitedConnection, "limits", Limits())
    for name, value in controller_environment(LIMITS).items():
        monkeypatch.setenv(name, value)
    (guard,) = middlewares()
    assert guard.kwargs == {"body_mib": 0.25}
    assert LimitedConnection.limits == LIMITS
    config = uvicorn.Config(application())  # as Ray starts it
    config.load()
    assert config.http_protocol_class is LimitedConnection
