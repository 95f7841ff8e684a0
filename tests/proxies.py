"""The environment's proxies, and a proxy that lets nothing through."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def set_proxies(monkeypatch, **values):
    """Set variables of proxies, such as `http_proxy`, and unset the others."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelled in (name, name.upper()):
            monkeypatch.setenv(spelled, "")  # or else what a test sets would outlive it
            monkeypatch.delenv(spelled)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@contextmanager
def answering(status, body, headers=None):
    """The address of a server that answers every request so, as a proxy that lets nothing through."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_CONNECT = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
