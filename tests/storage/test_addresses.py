"""Addresses where nobody answers: what is said, and that nobody waits longer than the deadline."""

import contextlib
import http.server
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from orchestrator.storage import addresses
from orchestrator.storage.addresses import why_silent, why_unreachable


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(addresses, "ANSWER_S", 0.3)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def listening(answer=None, backlog=5):
    """A port that accepts connections, and answers each with these bytes, or never."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.recv(1000)
                    for byte in answer:
                        connection.sendall(bytes([byte]))
                        time.sleep(0.0 if len(answer) < 99 else 0.05)
                    connection.close()

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@contextlib.contextmanager
def full():
    """A port whose queue is full, where a connection waits as at an address that routes nowhere."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(listening(backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield port


def test_a_closed_port_a_full_one_and_an_unknown_host_are_told_apart():
    assert why_unreachable("127.0.0.1", 1) == "Connection refused"
    assert why_unreachable("no-such-host.invalid", 80) == "there is no host of this name"
    with full() as port:
        started = time.monotonic()
        assert why_unreachable("127.0.0.1", port) == "no answer within 0.3 s"
        assert time.monotonic() - started < 5
    with listening() as port:
        assert why_unreachable("127.0.0.1", port) is None
        assert why_silent(f"postgresql+psycopg://me:secret@127.0.0.1:{port}/db") is None
    assert why_silent("postgresql://127.0.0.1:1/db") == "Connection refused"


def test_a_server_that_accepts_and_says_nothing_or_something_else_is_silent():
    with listening() as port:
        assert why_silent(f"http://127.0.0.1:{port}") == "no answer within 0.3 s"
        assert why_silent(f"https://127.0.0.1:{port}") == "no answer within 0.3 s"
    with listening(b"SSH-2.0-OpenSSH\r\n") as port:
        assert why_silent(f"http://127.0.0.1:{port}/x") == "it does not speak HTTP"
        assert why_silent(f"https://127.0.0.1:{port}") == "it does not speak HTTPS"
    with listening(b"HTTP/1.0 200 OK\r\n" + b"x-slow: 1\r\n" * 99) as port:
        assert why_silent(f"http://127.0.0.1:{port}") == "no answer within 0.3 s", "a byte now and then"


def test_any_http_status_is_an_answer():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert why_silent(f"http://127.0.0.1:{server.server_port}/health") is None
    server.shutdown()
    server.server_close()


def test_what_only_a_proxy_reaches_is_not_looked_for(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert why_silent("http://no-such-host.invalid") is None
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert why_silent("http://127.0.0.1:1") == "Connection refused"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_at_once(stop):
    code = (
        "import signal, sys; from orchestrator.storage.addresses import why_silent\n"
        # A shell may have started the tests in the background, where it ignores Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('waiting', flush=True); why_silent(sys.argv[1])"
    )
    with listening() as port:
        process = subprocess.Popen(
            [sys.executable, "-c", code, f"http://127.0.0.1:{port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        process.stdout.readline()
        time.sleep(0.2)
        started = time.monotonic()
        process.send_signal(stop)
        assert process.wait(8) != 0
        assert time.monotonic() - started < 5
