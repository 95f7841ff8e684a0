"""RAY_ADDRESS: addresses where no cluster answers are refused at once."""

import http.server
import socket
import threading
import time

import pytest
import ray

from orchestrator.cluster import nodes
from orchestrator.cluster.nodes import connect, planned_nodes
from orchestrator.errors import ConfigError
from orchestrator.storage import addresses


@pytest.fixture
def refusal(monkeypatch):
    """The refusal of an address, which may take no longer than the deadline and the imports."""
    monkeypatch.setattr(addresses, "ANSWER_S", 0.3)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests' Ray stays as it is

    def refuse(address):
        monkeypatch.setenv("RAY_ADDRESS", address)
        for join in (connect, planned_nodes):
            started = time.monotonic()
            with pytest.raises(ConfigError) as caught:
                join()
            assert time.monotonic() - started < 15
        message = str(caught.value)
        assert message.startswith(f"RAY_ADDRESS={address}: ")
        assert "unset" in message
        return message

    return refuse


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "(Connection refused)"),
        ("ray://127.0.0.1:1", "(Connection refused)"),
        ("no-such-host.invalid:6379", "(there is no host of this name)"),
        ("[::1]:1", "("),
        ("http://127.0.0.1:8265", "write HOST:PORT"),
        ("127.0.0.1", "write HOST:PORT"),
        ("127.0.0.1:port", "write HOST:PORT"),
        ("/tmp/ray", "write HOST:PORT"),
        ("two words:1", "write HOST:PORT"),
        ("127.0.0.1:99999", "("),
    ],
)
def test_an_address_without_a_cluster_is_refused(refusal, address, reason):
    assert reason in refusal(address)


def test_what_accepts_connections_and_is_no_cluster_is_refused(refusal):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert "(no answer within 0.3 s)" in refusal(f"127.0.0.1:{mute.getsockname()[1]}")
    page = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    page.RequestHandlerClass.log_message = lambda *_: None
    threading.Thread(target=page.serve_forever, daemon=True).start()
    assert "(what listens there is not the head" in refusal(f"127.0.0.1:{page.server_port}")
    page.shutdown()
    page.server_close()


def test_the_file_of_a_cluster_that_is_gone_is_refused(refusal, monkeypatch):
    monkeypatch.setattr(nodes, "read_ray_address", lambda: "127.0.0.1:1")
    assert "no Ray cluster answers at 127.0.0.1:1 (Connection refused)" in refusal("auto")


def test_a_cluster_is_recognised(ray_cluster):
    head = ray.get_runtime_context().gcs_address
    assert nodes._why_no_head(head) is None
    nodes._refuse_silent(head)
