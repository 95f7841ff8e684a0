"""The proxy's guard: bodies that are too large, and JSON for the proxy's own errors."""

import asyncio
import json

from orchestrator.serving.proxy import Guard


class TestGuard:
    def call(self, app, chunks=(b"",), headers=(), path="/v1/score", mib=10 / 2**20):
        """What a client receives: status, headers and body."""
        messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        sent = []

        async def receive():
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": path, "headers": list(headers)}
        asyncio.run(Guard(app, body_mib=mib)(scope, receive, send))
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    def answer(self, status, body, kind=b"application/json"):
        async def app(scope, receive, send):
            while (message := await receive())["type"] != "http.disconnect" and message["body"]:
                pass
            await send(
                {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}
            )
            await send({"type": "http.response.body", "body": body})

        return app

    def test_it_leaves_the_services_own_answers_alone(self):
        assert self.call(self.answer(200, b"{}"), [b"1234567890", b""])[::2] == (200, b"{}")
        assert self.call(self.answer(422, b'{"error": 1}'))[::2] == (422, b'{"error": 1}')

    def test_a_body_is_refused_by_its_stated_length_before_it_is_read(self):
        async def unreached(scope, receive, send):
            raise AssertionError("the request was let through")

        status, _, body = self.call(unreached, headers=[(b"content-length", b"11")])
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")

    def test_a_body_without_a_length_is_refused_when_it_has_grown_too_large(self):
        assert self.call(self.answer(200, b"{}"), [b"123456", b"12345", b""])[0] == 413

    def test_the_proxys_plain_errors_become_json(self):
        status, headers, body = self.call(self.answer(404, b"Path not found", b"text/plain"))
        assert (status, headers[b"content-type"]) == (404, b"application/json")
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert self.call(self.answer(500, b"Traceback ...", b"text/plain"))[0] == 503

    def test_a_request_that_its_ingress_lost_is_503(self):
        async def silent(scope, receive, send):
            pass

        status, headers, _ = self.call(silent)
        assert (status, headers[b"retry-after"]) == (503, b"1")
