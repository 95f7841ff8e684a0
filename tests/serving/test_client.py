"""The client against a local HTTP server that sends the service's own answers."""

import json
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.errors import LaserError
from orchestrator.serving import answers
from orchestrator.serving.client import Choice, Client, ScoreReply, ServiceError, Solved, Voted
from orchestrator.serving.errors import ApiError
from orchestrator.serving.requests import ChatRequest, Message
from orchestrator.serving.solutions import Answer, Solution, SolutionScore, Tally
from tests.proxies import answering, set_proxies

REQUEST = ChatRequest(model="m", messages=[Message(role="user", content="1+1=?")])
SOLUTION = Solution(r"\boxed{2}", 4, True, False, -20.0, 0.9, [])


@pytest.fixture
def proxies(monkeypatch):
    return partial(set_proxies, monkeypatch)


@contextmanager
def serving(*replies):
    """A client of a server that sends these replies: trees of JSON, or errors of the service."""
    left, keys = list(replies), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers["Authorization"])
            reply = left.pop(0)
            refusal = isinstance(reply, ApiError)
            body = reply.body if refusal else json.dumps(reply).encode()
            self.send_response(reply.status if refusal else 200)
            for name, value in (reply.headers if refusal else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}", api_key="sk-1", model="m") as client:
            yield client
    finally:
        server.shutdown()
        server.server_close()
    assert left == []
    assert set(keys) == {"Bearer sk-1"}


def test_scores_have_the_fields_of_the_services_answer():
    scores = [SolutionScore(0.9, -20.0, True, True), SolutionScore(None, None, None, False)]
    with serving(answers.scores("m", "weights", scores)) as client:
        found = client.score([Solved("1+1=?", "2"), Solved("1+1=?", "3")])
    assert found == [ScoreReply(0.9, -20.0, True, True), ScoreReply(None, None, None, False)]


def test_choices_and_votes_have_the_fields_of_the_services_answer():
    tally = Tally(2, 8, "2", {"2": 1.8}, True)
    drawn = answers.completion(REQUEST, Answer("weights", 5, [SOLUTION]))
    voted = answers.completion(REQUEST, Answer("weights", 5, [SOLUTION], tally))
    with serving(drawn, voted) as client:
        assert client.sample("1+1=?") == [Choice(r"\boxed{2}", 0.9, "stop")]
        assert client.vote("1+1=?", n=2) == Voted(r"\boxed{2}", 0.9, "2", {"2": 1.8}, 2, 8, True)


def test_a_busy_service_is_asked_again_and_another_refusal_is_raised():
    busy = ApiError(429, "64 requests wait already", code="overloaded", retry_after_s=0)
    with serving(busy, busy, answers.scores("m", "weights", [])) as client:
        assert client.score([Solved("1+1=?", "2")]) == []
    with (
        serving(ApiError(422, "too long", "items[0]", "context_length_exceeded")) as client,
        pytest.raises(ServiceError, match=r"too long \(HTTP 422\)") as caught,
    ):
        client.score([Solved("1+1=?", "2")])
    error = caught.value
    assert (error.status, error.param, error.code) == (422, "items[0]", "context_length_exceeded")


@pytest.mark.parametrize(
    "variables",
    [
        {"http_proxy": "http://127.0.0.1:1"},
        {"HTTP_PROXY": "http://127.0.0.1:1", "no_proxy": "elsewhere.example"},
        {"ALL_PROXY": "socks5://127.0.0.1:1"},
        {"all_proxy": "socks5h://127.0.0.1:1", "https_proxy": "nonsense://x"},
    ],
)
def test_calls_to_this_machine_use_no_proxy(proxies, variables):
    proxies(**variables)
    with serving(answers.scores("m", "weights", [])) as client:
        assert client.score([Solved("1+1=?", "2")]) == []


def test_a_socks_proxy_that_httpx_cannot_use_is_named_with_the_fix(proxies, monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)  # as where httpx[socks] is not installed
    proxies(ALL_PROXY="socks5://127.0.0.1:1")
    with pytest.raises(LaserError, match=r"ALL_PROXY=socks5://127.0.0.1:1: .*pip install httpx\[socks\]"):
        Client("http://far.example:8000")
    proxies(ALL_PROXY="socks5://127.0.0.1:1", NO_PROXY=".example")
    Client("http://far.example:8000").close()


@pytest.mark.parametrize("url", ["http://far.example:8000", "https://far.example"])
@pytest.mark.parametrize(
    ("status", "body"), [(502, b"Bad Gateway"), (403, b"<html>no</html>"), (200, b"hello")]
)
def test_a_proxy_that_answers_itself_is_blamed_and_not_the_service(proxies, url, status, body):
    with answering(status, body) as proxy:
        proxies(http_proxy=proxy, https_proxy=proxy)
        variable = f"{url.partition(':')[0]}_proxy={proxy}"
        with Client(url, model="m") as client, pytest.raises(ServiceError) as caught:
            client.score([Solved("1+1=?", "2")])
    assert f"a proxy is in the way, by {variable}: add far.example to no_proxy" in str(caught.value)


def test_an_answer_that_is_not_the_services_is_told_as_such():
    for status, body in ((200, b"<html>"), (404, b"[]"), (400, b'{"error": "no"}'), (200, b"")):
        with answering(status, body) as url, Client(url, model="m") as client:
            with pytest.raises(ServiceError, match="the answer is not the service's") as caught:
                client.score([Solved("1+1=?", "2")])
            assert caught.value.status == status


def test_a_date_in_retry_after_is_no_traceback():
    headers = {"Retry-After": "Fri, 27 Nov 2026 15:00:00 GMT"}
    with (
        answering(503, b"busy", headers) as url,
        Client(url, model="m", retries=1) as client,
        pytest.raises(ServiceError, match="HTTP 503"),
    ):
        client.score([Solved("1+1=?", "2")])
