"""The connection to a cluster: its version, its token, its address."""

import http.server
import json
import socket
import threading

import pytest
import ray

from orchestrator.errors import ConfigError
from orchestrator.jobs.client import Cluster
from orchestrator.storage import addresses


class Answers(http.server.BaseHTTPRequestHandler):
    """A dashboard of another version, which cannot be had here without installing one."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.answer).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def dashboard():
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked, server.answer = [], {}
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_another_version_of_ray_or_python_is_refused_and_an_explicit_address_wins(
    here, dashboard, monkeypatch
):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    address = f"127.0.0.1:{dashboard.server_port}"
    with pytest.raises(ConfigError, match="answers, but not as the dashboard of a Ray cluster"):
        Cluster(address)
    for ray_version, python in (("2.40.0", "3.11.7"), (ray.__version__, "3.99.1")):
        dashboard.answer = {"data": {"rayVersion": ray_version, "pythonVersion": python}}
        with pytest.raises(ConfigError) as caught:
            Cluster(address)
        assert str(caught.value).startswith(
            f"http://{address} runs Ray {ray_version} on Python {python}, and this environment Ray "
        )


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({}, None),
        ({"RAY_AUTH_TOKEN": "of-variable"}, "Bearer of-variable"),
        ({"RAY_AUTH_TOKEN_PATH": "token"}, "Bearer of-file"),
        ({"RAY_AUTH_TOKEN_PATH": "token", "RAY_AUTH_MODE": "disabled"}, None),
    ],
)
def test_the_token_is_sent_from_where_ray_looks_for_it(here, dashboard, monkeypatch, variables, sent):
    (here / "token").write_text("of-file\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError):
        Cluster(f"http://127.0.0.1:{dashboard.server_port}")
    assert dashboard.asked == [("/", None), ("/api/v0/cluster_metadata", sent)]


@pytest.mark.parametrize("variable", [False, True])
def test_where_nobody_answers_the_message_names_the_address_and_its_source(monkeypatch, variable):
    monkeypatch.setattr(addresses, "ANSWER_S", 0.2)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        cases = {
            "127.0.0.1:1": "Connection refused",
            f"127.0.0.1:{mute.getsockname()[1]}": "no answer within",
        }
        for address, reason in cases.items():
            monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address if variable else "ignored")
            with pytest.raises(ConfigError) as caught:
                Cluster(None if variable else address)
            source = "RAY_API_SERVER_ADDRESS" if variable else "--address"
            assert f"http://{address}: no Ray cluster answers there ({reason}" in str(caught.value)
            assert f"that of {source}. Start one" in str(caught.value)
