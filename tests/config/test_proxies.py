"""The environment's proxies, and which calls they may take."""

import os
import socket
import urllib.request

import pytest
import requests

from orchestrator.config.proxies import is_this_machine, proxy_variable, spare_this_machine
from tests.proxies import set_proxies


@pytest.fixture(autouse=True)
def proxied(monkeypatch):
    """An environment whose only proxy is http_proxy."""
    set_proxies(monkeypatch, http_proxy="http://me:secret@proxy.example:3128")
    return monkeypatch


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000",
        "http://127.8.9.1/v1",
        "http://[::1]:8000",
        "http://[::ffff:127.0.0.1]:8000",
        "http://LOCALHOST:80",
        "http://service.localhost",
        "http://0.0.0.0:8000",
        "127.0.0.1:8000",
        f"http://{socket.gethostname()}:8000",
    ],
)
def test_names_of_this_machine(url):
    assert is_this_machine(url)
    assert proxy_variable(url) is None


@pytest.mark.parametrize(
    "url", ["http://10.255.255.1", "http://example.org", "http://localhost.example.org", "x", ""]
)
def test_other_names(url):
    assert not is_this_machine(url)


def test_the_variable_is_named_without_its_password(proxied):
    assert proxy_variable("http://far.example:8000") == "http_proxy=http://***@proxy.example:3128"
    assert proxy_variable("https://far.example") is None, "http_proxy is not for https"
    proxied.setenv("ALL_PROXY", "socks5://proxy.example:1080")
    assert proxy_variable("https://far.example") == "ALL_PROXY=socks5://proxy.example:1080"
    proxied.setenv("no_proxy", "far.example,10.0.0.1")
    assert proxy_variable("http://far.example:8000") is None


@pytest.mark.parametrize("listed", [None, "far.example", "localhost, 127.0.0.1"])
def test_this_machine_is_added_to_no_proxy(proxied, listed):
    if listed:
        proxied.setenv("NO_PROXY", listed)
    spare_this_machine("http://127.0.0.9:5000", "http://other.example")
    for url in ("http://localhost:1", "http://127.0.0.1:1/x", "http://127.0.0.9:5000"):
        assert requests.utils.get_environ_proxies(url) == {}, "requests"
        assert urllib.request.proxy_bypass(urllib.request.Request(url).host), "urllib"
    assert requests.utils.get_environ_proxies("http://other.example")
    assert bool(requests.utils.get_environ_proxies("http://far.example")) == (listed != "far.example")


def test_nothing_is_set_where_there_is_no_proxy(proxied):
    proxied.delenv("http_proxy")
    spare_this_machine("http://127.0.0.1:5000")
    assert "no_proxy" not in os.environ
