import http.server
import threading

import pytest

from orchestrator.tracking.tracker import Tracker
from tests import settings


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """One folder of runs for all tests: making its database takes seconds."""
    return tmp_path_factory.mktemp("tracking") / "runs"


@pytest.fixture
def work_folder(tmp_path, monkeypatch):
    """An empty working directory, which must stay empty: MLflow by default writes ./mlruns."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def configure(runs, request, work_folder):
    """The configuration of a run that is named after the test. Arguments: the tracking URI and sections."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)

    def make(uri=None, **sections):
        run = {"name": name, "dir": str(runs)}
        return settings.configure(**{"run": run, "tracking": {"uri": uri}} | sections)

    return make


@pytest.fixture
def said():
    """The lines that a tracker said."""
    return []


@pytest.fixture
def start(said):
    """Starts trackers, and stops them after the test."""
    trackers = []

    def make(config, **arguments):
        trackers.append(Tracker(config, said.append, **arguments))
        return trackers[-1]

    yield make
    for tracker in trackers:
        tracker.close(0.0)


@pytest.fixture
def answering():
    """A fake server that answers every request with one status and text, which the test sets.

    A real server cannot be made to refuse or to be overloaded at a chosen moment.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = server.body.encode()
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            server.requests += 1

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.status, server.body = 0, 500, ""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
