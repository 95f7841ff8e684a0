"""A judge of the tests: an OpenAI-compatible endpoint that is good, slow, away, or answers rubbish."""

import asyncio
import json
import random
import threading
from collections import Counter


class JudgeServer:
    """Marks a response 10 when it holds `right`, else 0. Serves in a thread of its own.

    Attributes:
        behaviour: Called for each request; its text says what the server does: `mark`, `slow`, `rubbish`,
            `no_json`, `busy`, `broken`, `drop`, `unauthorised`.
        counts: Requests by behaviour.
        most: Requests at the same time, at most.
        keys: The Authorization headers that were sent.
    """

    def __init__(self, behaviour=lambda: "mark", tokens=50, slow_s=60.0):
        self.behaviour, self.tokens, self.slow_s = behaviour, tokens, slow_s
        self.counts, self.most, self.keys = Counter(), 0, set()
        self._now = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self):
        asyncio.set_event_loop(self._loop)
        serving = asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
        server = self._loop.run_until_complete(serving)
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _connection(self, reader, writer):
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _request(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = json.loads(await reader.readexactly(int(fields["content-length"])))
        self.keys.add(fields.get("authorization"))
        what = self.behaviour()
        self.counts[what] += 1
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            if what == "drop":
                return False
            if what == "slow":
                await asyncio.sleep(self.slow_s)
            status, text, extra = self._answer(what, body)
        finally:
            self._now -= 1
        data = text.encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n{extra}\r\n".encode() + data)
        await writer.drain()
        return True

    def _answer(self, what, body):
        if what == "busy":
            return 429, "slow down", "Retry-After: 0.01\r\n"
        if what == "broken":
            return 500, "oops", ""
        if what == "unauthorised":
            return 401, "who are you?", ""
        if what == "no_json":
            return 200, "<html>hello</html>", ""
        response = body["messages"][0]["content"].partition("Response to mark:")[2].partition("Does the")[0]
        mark = "Score: 10" if "right" in response else "Score: 0"
        content = f"Hm.\n{mark}"
        if what == "rubbish":
            content = random.choice(["no idea", "Score: 99", "Score: ten", ""])
        reply = {"choices": [{"message": {"content": content}}], "usage": {"total_tokens": self.tokens}}
        return 200, json.dumps(reply), ""
