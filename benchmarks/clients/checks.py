"""What the scripts of the clients share. They run in the clients' environments: the standard library only."""

import argparse
import importlib.metadata
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROBLEMS = [
    "a<b in {12,26,31}, a+b=43; a=?",
    "a<b in {11,14,16}, a+b=27; a=?",
    "a<b in {16,22,38}, a+b=54; a=?",
]
TOLERANCE = 1e-3


@dataclass
class Service:
    """Where the service answers."""

    url: str
    """With `/v1` at its end."""
    key: str
    model: str


def service() -> Service:
    """The service that the command line names."""
    parser = argparse.ArgumentParser()
    for name in ("url", "key", "model"):
        parser.add_argument(f"--{name}", required=True)
    return Service(**vars(parser.parse_args()))


def report(package: str, checks: dict[str, Callable[[], str | None]]) -> None:
    """Run the checks, and print the package's version and each outcome as JSON, one a line.

    Args:
        checks: By name; each raises when it fails, and may return a remark.
    """
    print(json.dumps({"package": package, "version": importlib.metadata.version(package)}), flush=True)
    for name, check in checks.items():
        try:
            passed, remark = True, check() or ""
        except Exception as error:  # Whatever a client raises is the outcome.
            passed, remark = False, f"{type(error).__name__}: {error}"
        print(json.dumps({"check": name, "passed": passed, "remark": remark[:300]}), flush=True)


def require(condition: object, message: str) -> None:
    """Raises AssertionError with this message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def scored_alike(service: Service, messages: list[dict[str, Any]], score: float) -> None:
    """Check that `/v1/score` gives a dialogue's last answer the score that came with the answer."""
    body = json.dumps({"model": service.model, "items": [{"messages": messages}]}).encode()
    headers = {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{service.url}/score", body, headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        found = json.load(reply)["results"][0]["score"]
    require(
        found is not None and abs(found - score) < TOLERANCE, f"/v1/score says {found}, the answer {score}"
    )


@contextmanager
def refusing_first(service: Service, statuses: list[int]) -> Iterator[tuple[str, list[int]]]:
    """A server that answers with these statuses as a busy service does, and then hands requests on.

    The real service cannot be made busy at a chosen time.

    Yields:
        Its URL, and the list of statuses that it has not yet answered.
    """
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if left:
                status = left.pop(0)
                error = {"message": "busy", "type": "rate_limit_error", "param": None, "code": "overloaded"}
                self.answer(status, json.dumps({"error": error}).encode())
                return
            headers = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
            request = urllib.request.Request(service.url + self.path.removeprefix("/v1"), body, headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    self.answer(reply.status, reply.read())
            except urllib.error.HTTPError as error:
                self.answer(error.code, error.read())

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", left
    finally:
        server.shutdown()
        server.server_close()
