"""Does the service answer while thousands of clients hold connections on which they send nothing whole?

    python -m benchmarks.connections                 a server of its own, with the proxies' limits
    python -m benchmarks.connections --url URL       a running service

Prints a table and a JSON line: how many connections were held, how long healthy requests took meanwhile, and
how long the server took to close the others.
"""

import argparse
import json
import multiprocessing
import resource
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np

HALF = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
CLIENT_S = 20.0


def serve(listening: socket.socket) -> None:
    """Serve `/healthz` behind the proxies' limits, until killed."""
    import uvicorn

    from orchestrator.config.serving import Limits
    from orchestrator.serving.connections import LimitedConnection
    from orchestrator.serving.proxy import Guard

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ready"})

    LimitedConnection.limits = Limits(client_s=CLIENT_S)
    config = uvicorn.Config(Guard(app, 4.0), http=LimitedConnection, lifespan="off", log_level="critical")
    uvicorn.Server(config).run(sockets=[listening])


def healthy_seconds(url: str) -> float:
    """Seconds of one request on a connection of its own."""
    began = time.perf_counter()
    httpx.get(f"{url}/healthz", timeout=60).raise_for_status()
    return time.perf_counter() - began


def measure(url: str, connections: int) -> dict[str, float]:
    """Hold connections, half of them with half a request, and ask `/healthz` meanwhile."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    quiet = [healthy_seconds(url) for _ in range(50)]
    held, refused, during = [], 0, []
    for number in range(connections):
        try:
            held.append(socket.create_connection((host, port), timeout=10))
            if number % 2:
                held[-1].sendall(HALF)
        except OSError:
            refused += 1
        if number % (connections // 50) == 0:
            during.append(healthy_seconds(url))
    began = time.perf_counter()
    for connection in held:
        connection.settimeout(300)
        try:
            while connection.recv(4096):
                pass
        except OSError:
            pass
        connection.close()
    return {
        "connections": len(held),
        "refused": refused,
        "healthy_quiet_median_s": float(np.median(quiet)),
        "healthy_median_s": float(np.median(during)),
        "healthy_longest_s": max(during),
        "closed_after_s": time.perf_counter() - began,
    }


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the JSON line here too")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = None
    if options.url is None:
        listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
        server = multiprocessing.get_context("fork").Process(target=serve, args=(listening,), daemon=True)
        server.start()
        options.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.close()
    try:
        found = measure(options.url, options.connections)
    finally:
        if server is not None:
            server.terminate()
            server.join()
    for name, value in found.items():
        print(f"{name:24}{value:12.4g}")
    line = json.dumps({name: round(value, 5) for name, value in found.items()})
    print(line)
    if options.json is not None:
        options.json.write_text(line + "\n")


if __name__ == "__main__":
    main()
