"""Whether a server answers at an address, before anything waits for it.

In: an address. Out: nothing, or the reason in words. Each answer takes at most `ANSWER_S` seconds, also where
the resolver or a connection hangs, and a signal ends the wait at once.
"""

import http.client
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

ANSWER_S = 10.0
"""Seconds that a server has to answer."""

_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def why_unreachable(host: str, port: int) -> str | None:
    """Why no TCP connection to the address can be opened; None where one can."""
    return _within(lambda: socket.create_connection((host, port), ANSWER_S).close())


def why_silent(url: str) -> str | None:
    """Why nothing answers at a URL: HTTP with any status, or a database's port; None where something does.

    None too where a proxy stands between, because only its user knows what it can reach.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    try:
        host, port = parts.hostname, parts.port or _PORTS.get(scheme)
    except ValueError as error:
        return str(error)
    if host is None or port is None or _has_proxy(scheme, host):
        return None
    if scheme not in ("http", "https"):
        return why_unreachable(host, port)
    return _within(lambda: _request(scheme, host, port, parts.path or "/"))


def _has_proxy(scheme: str, host: str) -> bool:
    proxies = urllib.request.getproxies()
    return any(name in proxies for name in (scheme, "all")) and not urllib.request.proxy_bypass(host)


def _request(scheme: str, host: str, port: int, path: str) -> None:
    if scheme == "https":
        # Whether the certificate is right, the server's own client says in its own words.
        context = ssl._create_unverified_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=ANSWER_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        connection.getresponse()
    finally:
        connection.close()


def _within(attempt: Callable[[], object]) -> str | None:
    """The reason why an attempt failed or took longer than `ANSWER_S`; None where it succeeded."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            attempt()
        except Exception as error:  # the main thread says it
            failures.append(error)

    # A resolver and a slow answer know no deadline, so the wait for the thread has it.
    thread = threading.Thread(target=run, daemon=True, name="address")
    thread.start()
    thread.join(ANSWER_S)
    if thread.is_alive():
        return f"no answer within {ANSWER_S:g} s"
    return _reason(failures[0]) if failures else None


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return f"no answer within {ANSWER_S:g} s"
        case socket.gaierror():
            return "there is no host of this name"
        case ssl.SSLError():
            return "it does not speak HTTPS"
        case http.client.HTTPException():
            return "it does not speak HTTP"
        case OSError():
            return error.strerror or type(error).__name__
    return str(error)
