"""The real service: Ray Serve, vLLM and HTTP, with the quick-start's base model and a card."""

import asyncio
import collections
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.chaos.nodes import free_port
from orchestrator.serving.client import Client, ServiceError, Solved, SolvedTokens
from orchestrator.storage.card import SelfRewardCard, template_hash

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"
KEY = "sk-a-key"
PROBLEM = "a<b in {12,26,31}, a+b=43; a=?"
SOLUTION = r"26+31=57>43;12+31=43;\boxed{12}"
MESSAGES = [{"role": "user", "content": PROBLEM}]
TOLERANCE = 1e-3
REQUESTS = (
    'laser_requests_total{application="laser-ingress",endpoint="chat",model="tiny",replica="0",status="200"}'
)
C_REF, BETA_V = -22.0, 0.1


class Reference:
    """A float32 forward pass in transformers over the same weights."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.prompt = list(
            self.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
        )

    def response(self, solution: str) -> list[int]:
        return [*self.tokenizer.encode(solution, add_special_tokens=False), self.tokenizer.eos_token_id]

    @torch.no_grad()
    def logprob(self, solution: str) -> float:
        token_ids = torch.tensor([[*self.prompt, *self.response(solution)]])
        return (
            self.model(token_ids)
            .logits[0, -1]
            .float()
            .log_softmax(-1)[self.tokenizer.get_vocab()["<|self_reward|>"]]
            .item()
        )

    def score(self, solution: str) -> float:
        return BETA_V * (self.logprob(solution) - C_REF)


def export(run: Path, step: int, noise: float) -> Path:
    """A run's export as training writes it: the base model, changed a little, with its card."""
    folder = run / "checkpoints" / f"step-{step:06d}" / "export"
    shutil.copytree(BASE, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(step)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    card = SelfRewardCard(
        "<|self_reward|>", 3, C_REF, BETA_V, [tokenizer.eos_token_id], "", template_hash(tokenizer)
    )
    card.write(folder)
    link = run / ".export-new"
    link.symlink_to(folder.relative_to(run))
    link.replace(run / "export")
    return folder


class Server:
    """`laser serve` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.headers = {"Authorization": f"Bearer {KEY}"}
        (folder / "keys").write_text(f"# one key a line\nsk-another\n{KEY}\n")
        command = [
            str(Path(sys.executable).parent / "laser"),
            "serve",
            "--model",
            f"tiny={folder / 'run'}",
            "--port",
            str(self.port),
        ]
        command += [
            "--keys-file",
            str(folder / "keys"),
            "--follow",
            "follow_every_s=1",
            "engine.cpus=0.5",
            "engine.max_ongoing=8",
        ]
        command += [
            "limits.queued=8",
            "limits.body_mib=0.1",
            "limits.items=4",
            "limits.choices=16",
            "limits.samples=64",
        ]
        self.log = folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "engine.engine_args={enforce_eager: true}"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_for_line(self, text: str, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.log.read_text():
            assert self.process.poll() is None, f"the service ended: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"no {text!r} within {timeout_s} s: {self.log.read_text()}"
            time.sleep(0.1)

    def kill(self) -> None:
        for victim in (
            [*self.children(), psutil.Process(self.process.pid)] if self.process.poll() is None else []
        ):
            victim.kill()
        self.process.wait()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def engines(self) -> list[psutil.Process]:
        return [p for p in self.children() if any("ServeReplica:tiny" in part for part in p.cmdline())]

    def post(self, path: str, body: object, **more) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            f"{self.url}{path}", content=content, timeout=120, **{"headers": self.headers} | more
        )

    def chat(self, **settings) -> httpx.Response:
        return self.post("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES} | settings)

    def metric(self, start: str) -> float:
        """Sum of the samples whose line starts so."""
        lines = httpx.get(f"{self.url}/metrics", headers=self.headers, timeout=30).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("serve")
    export(folder / "run", step=1, noise=0.0)
    server = Server(folder)
    try:
        server.wait_for_line("ready: ")
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def reference(server: Server) -> Reference:
    return Reference(server.folder / "run" / "checkpoints" / "step-000001" / "export")


@pytest.fixture(scope="module")
def openai_client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=120, max_retries=0)


@pytest.fixture(scope="module")
def client(server: Server):
    with Client(server.url, api_key=KEY, timeout_s=120) as client:
        yield client


def test_scores_of_both_endpoints_equal_a_float32_forward_pass(
    server: Server, client: Client, reference: Reference
) -> None:
    choices = client.sample(PROBLEM, n=16, seed=5, temperature=1.0)
    finished = [choice for choice in choices if choice.finish_reason == "stop"]
    assert len({choice.text for choice in finished}) >= 3
    for choice in finished:
        assert choice.self_reward == pytest.approx(reference.score(choice.text), abs=TOLERANCE * BETA_V)
    texts = [SOLUTION, *(choice.text for choice in finished[:3])]
    for text, score in zip(texts, client.score([Solved(PROBLEM, text) for text in texts]), strict=True):
        assert score.logprob == pytest.approx(reference.logprob(text), abs=TOLERANCE)
        assert score.score == pytest.approx(reference.score(text), abs=TOLERANCE * BETA_V)
        assert score.finished
        assert score.correct == (score.score > 0.5)


def test_token_ids_are_taken_as_they_are(client: Client, reference: Reference) -> None:
    response = reference.response(SOLUTION)
    exact, unfinished = client.score(
        [SolvedTokens(reference.prompt, response), SolvedTokens(reference.prompt, response[:-1])]
    )
    assert exact.logprob == pytest.approx(reference.logprob(SOLUTION), abs=TOLERANCE)
    assert (unfinished.score, unfinished.logprob, unfinished.correct, unfinished.finished) == (
        None,
        None,
        None,
        False,
    )


def test_a_conversation_is_scored_like_the_problem_that_it_is(server: Server, reference: Reference) -> None:
    item = {"messages": [*MESSAGES, {"role": "assistant", "content": SOLUTION}]}
    body = server.post("/v1/score", {"items": [item]}).json()
    assert body["model"] == "tiny"
    assert body["results"][0]["logprob"] == pytest.approx(reference.logprob(SOLUTION), abs=TOLERANCE)


def test_the_openai_client_streaming_and_not(openai_client: openai.OpenAI, reference: Reference) -> None:
    assert [model.id for model in openai_client.models.list()] == ["tiny"]
    settings = {"model": "tiny", "messages": MESSAGES, "n": 3, "seed": 11, "logprobs": True}
    whole = openai_client.chat.completions.create(**settings)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    for choice in whole.choices:
        ids = reference.response(choice.message.content)
        assert [token.token for token in choice.logprobs.content[:-1]] == [
            reference.tokenizer.decode([id_]) for id_ in ids[:-1]
        ]
        assert max(token.logprob for token in choice.logprobs.content) <= 0
    assert whole.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in whole.choices)
    assert whole.usage.prompt_tokens == len(reference.prompt)

    texts, scores, chunks = collections.defaultdict(str), {}, 0
    usage = None
    for chunk in openai_client.chat.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    ):
        usage, chunks = chunk.usage or usage, chunks + 1
        for choice in chunk.choices:
            assert choice.index not in scores, "self_reward is in the choice's last chunk"
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                scores[choice.index] = choice.self_reward
    assert chunks > 20, "tokens come as they are sampled"
    assert [texts[index] for index in range(3)] == [choice.message.content for choice in whole.choices]
    assert [scores[index] for index in range(3)] == pytest.approx(
        [choice.self_reward for choice in whole.choices], abs=1e-4
    )
    assert usage == whole.usage


def test_a_dialogue_goes_on_with_the_answers_as_the_client_dumps_them(openai_client: openai.OpenAI) -> None:
    said = [{"role": "developer", "content": "1+1=2"}, *MESSAGES]
    neutral = {"presence_penalty": 0, "response_format": {"type": "text"}, "tools": [], "user": "somebody"}
    for seed in (1, 2):
        answer = openai_client.chat.completions.create(
            model="tiny", messages=said, seed=seed, max_tokens=20, stop=["4"], extra_body=neutral
        )
        choice = answer.choices[0]
        said += [choice.message.model_dump() | {"self_reward": choice.self_reward}, *MESSAGES]
    assert len({message["role"] for message in said}) == 3
    item = {"messages": [*said[:-1], {"role": "assistant", "content": SOLUTION, "refusal": None}]}
    scored = openai_client.post("/score", cast_to=httpx.Response, body={"items": [item]}).json()
    assert scored["results"][0]["finished"]


def test_what_did_not_finish_has_no_score(openai_client: openai.OpenAI) -> None:
    settings = {"model": "tiny", "messages": MESSAGES, "seed": 11}
    cut = openai_client.chat.completions.create(**settings, max_tokens=5).choices[0]
    assert (cut.finish_reason, cut.self_reward, len(cut.message.content)) == ("length", None, 5)
    whole = openai_client.chat.completions.create(**settings).choices[0]
    assert whole.self_reward is not None
    head, stop, _ = whole.message.content.partition(r"\boxed{")
    for stream in (False, True):
        stopped = openai_client.chat.completions.create(**settings, stop=[stop, "never"], stream=stream)
        if stream:
            *pieces, last = [chunk.choices[0] for chunk in stopped]
            assert "".join(piece.delta.content or "" for piece in pieces) == head
            assert (last.finish_reason, last.self_reward) == ("stop", None)
        else:
            assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == (head, "stop")
            assert stopped.choices[0].self_reward is None


def test_votes_and_adaptive_sampling(
    client: Client, openai_client: openai.OpenAI, reference: Reference
) -> None:
    drawn = client.sample(PROBLEM, n=8, seed=3)
    votes: dict[str, float] = collections.defaultdict(float)
    for choice in drawn:
        answers = re.findall(r"\\boxed\{([^{}]+)\}", choice.text)
        if len(answers) == choice.text.count(r"\boxed{") == 1:
            votes[answers[0]] += min(1.0, max(0.0, choice.self_reward or 0.0))
    voted = client.vote(PROBLEM, n=8, seed=3)
    assert voted.votes == pytest.approx(votes, abs=1e-3)
    assert votes[voted.answer] == max(votes.values())
    assert (voted.samples, voted.settled) == (8, True)
    assert voted.tokens == sum(len(reference.response(choice.text)) for choice in drawn)
    assert voted.self_reward == pytest.approx(reference.score(voted.text), abs=TOLERANCE)

    adaptive = openai_client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        seed=3,
        temperature=0,
        extra_body={"laser": {"vote": "majority", "adaptive": {"confidence": 0.9}}},
    )
    # Greedy samples agree; P(p > 1/2) under Beta(3 + 1, 1) is 1 - 1/16, the first above .9.
    assert (adaptive.laser["samples"], adaptive.laser["settled"]) == (3, True)
    assert (
        adaptive.usage.completion_tokens
        == adaptive.laser["tokens"]
        == 3 * len(reference.response(adaptive.choices[0].message.content))
    )


LONG = "1" * 200
REFUSALS = {
    "no key": ({"headers": {}}, "chat/completions", {}, 401),
    "wrong key": ({"headers": {"Authorization": "Bearer sk-wrong"}}, "score", {}, 401),
    "malformed JSON": ({}, "chat/completions", b'{"model": ', 400),
    "no JSON object": ({}, "score", b"[]", 400),
    "unsupported parameter": (
        {},
        "chat/completions",
        {"model": "tiny", "messages": MESSAGES, "presence_penalty": 1},
        400,
    ),
    "parameter out of range": (
        {},
        "chat/completions",
        {"model": "tiny", "messages": MESSAGES, "temperature": -1},
        400,
    ),
    "n too large": ({}, "chat/completions", {"model": "tiny", "messages": MESSAGES, "n": 17}, 400),
    "too many tokens asked for": (
        {},
        "chat/completions",
        {"model": "tiny", "messages": MESSAGES, "max_tokens": 10_000},
        400,
    ),
    "too many samples": (
        {},
        "chat/completions",
        {"model": "tiny", "messages": MESSAGES, "laser": {"n": 65}},
        400,
    ),
    "role without meaning here": (
        {},
        "chat/completions",
        {"model": "tiny", "messages": [*MESSAGES, {"role": "tool", "content": "2", "tool_call_id": "1"}]},
        400,
    ),
    "half a character": (
        {},
        "chat/completions",
        {"model": "tiny", "messages": [{"role": "user", "content": "\ud83d"}]},
        400,
    ),
    "half a character in a key": ({}, "score", {"items": [], "\ud83d": 1}, 400),
    "token of no model": (
        {},
        "score",
        {"items": [{"prompt_token_ids": [1], "response_token_ids": [100_000]}]},
        400,
    ),
    "unknown model": ({}, "chat/completions", {"model": "other", "messages": MESSAGES}, 404),
    "unknown path": ({}, "completions", {}, 404),
    "body too large": ({}, "score", {"items": [{"problem": "1" * 200_000, "solution": "2"}]}, 413),
    "prompt too long": (
        {},
        "chat/completions",
        {"model": "tiny", "messages": [{"role": "user", "content": LONG}]},
        422,
    ),
    "item too long": (
        {},
        "score",
        {"items": [{"problem": "1", "solution": "2"}, {"problem": LONG * 2, "solution": LONG}]},
        422,
    ),
    "too many items": ({}, "score", {"items": [{"problem": "1", "solution": "2"}] * 5}, 422),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_have_openais_form_and_no_traceback(server: Server, name: str) -> None:
    more, path, body, status = REFUSALS[name]
    response = server.post(f"/v1/{path}", body, **more)
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert 'File "' not in response.text
    if name == "item too long":
        assert response.json()["error"]["param"] == "items[1]"


def test_a_body_without_a_length_is_cut_off_too(server: Server) -> None:
    def endless():
        for _ in range(100):
            yield b"1" * 10_000

    response = httpx.post(f"{server.url}/v1/score", content=endless(), headers=server.headers, timeout=60)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_headers_without_an_end_are_cut_off(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\na: " + b"b" * 200_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")
    assert httpx.get(f"{server.url}/healthz", timeout=60).status_code == 200


def test_the_openai_client_raises_its_own_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        openai_client.chat.completions.create(model="other", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="logit_bias is not supported"):
        openai_client.chat.completions.create(model="tiny", messages=MESSAGES, logit_bias={"5": 1})


def test_our_client_raises_what_the_service_said(server: Server) -> None:
    with (
        Client(server.url, api_key="sk-wrong") as client,
        pytest.raises(ServiceError, match="no valid API key") as caught,
    ):
        client.models()
    assert caught.value.status == 401


def test_health_needs_no_key_and_metrics_do(server: Server) -> None:
    assert httpx.get(f"{server.url}/healthz", timeout=30).json() == {"status": "ready", "models": ["tiny"]}
    assert httpx.get(f"{server.url}/metrics", timeout=30).status_code == 401
    assert server.metric(REQUESTS) > 0
    assert server.metric("laser_self_reward_count") > 0
    assert server.metric("laser_requests_in_flight") == server.metric("laser_queue_depth") == 0


async def burst(server: Server, count: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(
        base_url=server.url, headers=server.headers, timeout=120, limits=limits
    ) as client:
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 64}
        return await asyncio.gather(
            *(client.post("/v1/chat/completions", json=body | {"seed": seed}) for seed in range(count))
        )


def assert_right(responses: list[httpx.Response], references: dict[str, Reference]) -> None:
    """Each answer has the score of the weights that it names."""
    for response in responses:
        if response.status_code == 200:
            choice = response.json()["choices"][0]
            if choice["self_reward"] is not None:
                reference = references[response.json()["system_fingerprint"]]
                assert choice["self_reward"] == pytest.approx(
                    reference.score(choice["message"]["content"]), abs=TOLERANCE
                )


def weights(server: Server) -> str:
    return server.chat(max_tokens=1).json()["system_fingerprint"]


def test_of_200_requests_at_once_each_is_answered_or_refused_with_retry_after(
    server: Server, reference: Reference
) -> None:
    responses = asyncio.run(burst(server, 200))
    statuses = collections.Counter(response.status_code for response in responses)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 16, "eight at work and eight in the queue"
    assert_right(responses, {weights(server): reference})
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert server.chat(max_tokens=1).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_taken_out_of_the_engine(server: Server, stream: bool) -> None:
    left = REQUESTS.replace("200", "499")
    before = server.metric(left)
    one_by_one = {"adaptive": {"confidence": 1, "max_samples": 64}}
    long = {"stream": True, "n": 16, "temperature": 2} if stream else {"laser": one_by_one}
    body = json.dumps({"model": "tiny", "messages": MESSAGES} | long).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {KEY}",
        f"Content-Length: {len(body)}",
    ]
    request = "\r\n".join([*lines, "\r\n"])
    deadline = time.monotonic() + 60
    while server.metric(left) == before:  # an answer may be done before its client has left
        assert time.monotonic() < deadline
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(request.encode() + body)
            if stream:
                assert b"200" in connection.recv(200)
            else:
                while not server.metric("laser_replica_requests"):
                    assert time.monotonic() < deadline
        while server.metric("laser_requests_in_flight"):
            assert time.monotonic() < deadline
        assert server.metric("laser_engine_sequences") == 0
    written = server.metric("laser_response_tokens_total")
    time.sleep(0.5)
    assert server.metric("laser_response_tokens_total") == written


def test_new_weights_without_an_outage_and_never_a_score_of_other_weights(
    server: Server, reference: Reference
) -> None:
    old = weights(server)
    newer = Reference(export(server.folder / "run", step=2, noise=0.2))
    assert abs(newer.score(SOLUTION) - reference.score(SOLUTION)) > 0.01
    responses = []
    deadline = time.monotonic() + 240
    while (newest := weights(server)) == old or len(responses) % 2:
        assert time.monotonic() < deadline, server.log.read_text()
        responses.append(server.chat(seed=len(responses)))
    responses += [server.chat(seed=seed) for seed in range(5)]
    assert {response.status_code for response in responses} == {200}
    assert_right(responses, {old: reference, newest: newer})
    assert responses[-1].json()["system_fingerprint"] == newest
    server.wait_for_line(f"tiny: serves {server.folder / 'run'} step-000002", timeout_s=60)


def test_a_replica_killed_under_load_comes_back(server: Server, reference: Reference) -> None:
    newest = weights(server)
    newer = Reference(server.folder / "run" / "checkpoints" / "step-000002" / "export")

    async def killed_meanwhile() -> list[httpx.Response]:
        answers = asyncio.create_task(burst(server, 14))
        # The replica's own count: on a busy machine requests take a while to reach it.
        while not await asyncio.to_thread(server.metric, "laser_replica_requests"):
            assert not answers.done()
        (engine,) = server.engines()
        engine.kill()
        return await answers

    responses = asyncio.run(killed_meanwhile())
    assert {response.status_code for response in responses} <= {200, 429, 503}
    assert all("error" in response.json() for response in responses if response.status_code != 200)
    assert_right(responses, {newest: newer})
    deadline = time.monotonic() + 240
    while httpx.get(f"{server.url}/healthz", timeout=30).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert server.chat(max_tokens=1).status_code == 200
    assert server.metric("laser_retries_total") > 0


def test_the_example_runs(server: Server) -> None:
    example = Path(__file__).parents[2] / "examples" / "best_of_n.py"
    command = [sys.executable, str(example), PROBLEM, "--n", "4", "--url", f"{server.url}/v1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={"LASER_API_KEY": KEY}, check=True
    )
    *solutions, adaptive = done.stdout.splitlines()
    scores = [-math.inf if line.split()[0] == "none" else float(line.split()[0]) for line in solutions]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert adaptive.startswith("adaptive: ")


def test_requests_in_flight_end_before_the_service_does(server: Server) -> None:
    """Last: it stops the service."""

    async def stopped_meanwhile() -> tuple[httpx.Response, httpx.Response | None]:
        async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=120) as client:
            body = {"model": "tiny", "messages": MESSAGES, "n": 16, "temperature": 2, "laser": None}
            running = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(4)]
            await asyncio.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*running)

    responses = asyncio.run(stopped_meanwhile())
    assert [response.status_code for response in responses] == [200] * 4
    assert server.process.wait(timeout=60) == 0
    assert "stopped; every request was answered" in server.log.read_text()
