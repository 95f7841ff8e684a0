"""The service without Ray and engines: what requests may say, keys, text as it streams, the proxy's guard, metrics, and errors."""

import asyncio
import hashlib
import json
import queue
import shutil
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray._common.utils import import_attr as load_attr
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import BackPressureError
from ray.serve.schema import ServeDeploySchema

from actors.engine import Engine
from orchestrator.cli import main
from orchestrator.config.serving import (
    INGRESS,
    IngressConfig,
    Limits,
    ReplicaConfig,
    ServeConfig,
    ServedEngine,
    serve_config,
)
from orchestrator.errors import ConfigError, RunError
from orchestrator.serving.app import Ingress, _Call, engine, ingress
from orchestrator.serving.errors import ApiError
from orchestrator.serving.keys import Keys
from orchestrator.serving.launch import Service
from orchestrator.serving.metrics import IngressMetrics, merged
from orchestrator.serving.proxy import Guard, controller_environment
from orchestrator.serving.replica import AnswerComparer, engine_settings, weights_name
from orchestrator.serving.requests import (
    ChatRequest,
    MessagesItem,
    ProblemItem,
    ScoreRequest,
    TokensItem,
    parse,
)
from orchestrator.serving.streaming import StreamedText
from orchestrator.serving.voting import AnswerClasses
from orchestrator.storage.checkpoints import Checkpoints, TrainingState

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"
USER = [{"role": "user", "content": "1+1=?"}]


def chat(**more):
    return parse(json.dumps({"model": "m", "messages": USER} | more).encode(), ChatRequest)


def refused(body, schema):
    with pytest.raises(ApiError) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), schema)
    assert caught.value.status == 400
    return caught.value


class TestRequests:
    def test_null_means_the_default_as_in_openais_schema(self):
        assert chat(temperature=None, stop=None, n=None) == chat()

    def test_a_stop_string_and_a_list_of_one_are_the_same(self):
        assert chat(stop="}").stop == chat(stop=["}"]).stop == ["}"]

    def test_text_parts_are_joined(self):
        parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1"}]
        assert chat(messages=[{"role": "user", "content": parts}]).messages[0].content == "1+1"

    @pytest.mark.parametrize(
        ("more", "param", "message"),
        [
            ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty is not supported"),
            ({"n": 0}, "n", "greater than or equal to 1"),
            ({"top_p": 0}, "top_p", "greater than 0"),
            ({"messages": []}, "messages", "at least 1 item"),
            (
                {"messages": [{"role": "tool", "content": "x"}]},
                "messages.0.role",
                "'system', 'developer', 'user' or 'assistant'",
            ),
            ({"messages": [*USER, {"role": "assistant", "content": "2"}]}, None, "continues no answer"),
            ({"max_tokens": 5, "max_completion_tokens": 6}, None, "differ"),
            ({"laser": {}}, "laser", "either n"),
            ({"laser": {"n": 2, "adaptive": {}}}, "laser", "either n"),
            ({"laser": {"adaptive": {"confidence": 0.5}}}, "laser.adaptive.confidence", "greater than 0.5"),
            (
                {"laser": {"adaptive": {"min_samples": 5, "max_samples": 4}}},
                "laser.adaptive",
                "more than max_samples=4",
            ),
            ({"laser": {"n": 2}, "stream": True}, None, "leave out stream"),
        ],
    )
    def test_chat_refusals_name_the_field(self, more, param, message):
        error = refused({"model": "m", "messages": USER} | more, ChatRequest)
        assert error.param == param
        assert message in error.message

    def test_items_are_told_apart_by_their_keys(self):
        items = [
            {"problem": "p", "solution": "s"},
            {"messages": [*USER, {"role": "assistant", "content": "2"}]},
            {"prompt_token_ids": [1], "response_token_ids": [2]},
        ]
        found = parse(json.dumps({"items": items}).encode(), ScoreRequest).items
        assert [type(item) for item in found] == [ProblemItem, MessagesItem, TokensItem]

    @pytest.mark.parametrize(
        ("item", "param", "message"),
        [
            ({"problem": "p"}, "items.1.solution", "required"),
            ({"question": "p"}, "items.1", "give problem and solution"),
            ({"messages": [*USER, *USER]}, "items.1.messages", "must be the assistant's solution"),
            ({"prompt_token_ids": [1], "response_token_ids": []}, "items.1.response_token_ids", "at least 1"),
            (
                {"prompt_token_ids": [-1], "response_token_ids": [1]},
                "items.1.prompt_token_ids.0",
                "greater than or equal to 0",
            ),
        ],
    )
    def test_score_refusals_name_the_item(self, item, param, message):
        error = refused({"items": [{"problem": "p", "solution": "s"}, item]}, ScoreRequest)
        assert error.param == param
        assert message in error.message

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[1]", b'"text"', b"NaN"])
    def test_what_is_no_json_object(self, body):
        assert "JSON" in refused(body, ScoreRequest).message


class TestKeys:
    def test_a_key_of_the_file_or_of_the_environment_opens(self, tmp_path, monkeypatch):
        (tmp_path / "keys").write_text("# comment\n\nsk-1 \nsk-2\n")
        monkeypatch.setenv("LASER_API_KEY", "sk-3")
        keys = Keys.load(tmp_path / "keys")
        assert all(keys.admit(f"Bearer {key}") for key in ("sk-1", "sk-2", "sk-3"))
        assert keys.admit("bearer sk-1"), "the scheme's case does not matter"
        for header in (
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer sk-4",
            "Bearer sk-",
            "Basic sk-1",
            "sk-1",
            "Bearer # comment",
        ):
            assert not keys.admit(header), header

    def test_a_known_hash_opens_too(self, monkeypatch):
        monkeypatch.delenv("LASER_API_KEY", raising=False)
        keys = Keys.load(None, [hashlib.sha256(b"sk-1").hexdigest()])
        assert keys.admit("Bearer sk-1")
        assert not keys.admit("Bearer sk-2")
        assert Keys.load(None).admit(None), "no key at all leaves the service open"

    def test_a_file_without_keys_and_an_empty_variable_are_refused(self, tmp_path, monkeypatch):
        (tmp_path / "keys").write_text("# only a comment\n")
        with pytest.raises(ConfigError, match="holds no key"):
            Keys.load(tmp_path / "keys")
        with pytest.raises(ConfigError, match="cannot be read"):
            Keys.load(tmp_path / "none")
        monkeypatch.setenv("LASER_API_KEY", " ")
        with pytest.raises(ConfigError, match="LASER_API_KEY is empty"):
            Keys.load(None)

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
    )
    def test_an_address_that_others_reach_needs_a_key(self, host, loopback, monkeypatch):
        monkeypatch.delenv("LASER_API_KEY", raising=False)
        config = ServeConfig(models={"m": "/no/such/model"}, host=host)
        with pytest.raises(ConfigError, match="not found" if loopback else "there is no API key"):
            Service(config)

    def test_the_ingress_of_serve_deploy_refuses_to_be_open_by_accident(self, monkeypatch):
        monkeypatch.delenv("LASER_API_KEY", raising=False)
        with pytest.raises(ConfigError, match="would answer anybody"):
            ingress(IngressConfig(models=["m"]))


class TestSettings:
    @pytest.mark.parametrize(
        ("model", "name"),
        [
            ("runs/quickstart", "quickstart"),
            ("runs/a/export", "a"),
            ("models:/math@best", "math"),
            ("Org/Model-7B", "Model-7B"),
            ("x=/m", "x"),
        ],
    )
    def test_a_model_is_called_by_its_own_name_or_the_given_one(self, model, name):
        assert list(serve_config([model], {}, []).models) == [name]

    def test_two_models_of_one_name_are_refused(self):
        with pytest.raises(ConfigError, match="write --model OTHERNAME=b/m"):
            serve_config(["a/m", "b/m"], {}, [])

    def test_overrides_reach_sections(self):
        config = serve_config(
            ["m"],
            {"port": 9000},
            ["engine.cpus=0.5", "limits.queued=3", "engine.engine_args={enforce_eager: true}"],
        )
        assert (config.port, config.engine.cpus, config.limits.queued) == (9000, 0.5, 3)
        assert config.engine.engine_args == {"enforce_eager": True}

    def test_an_unknown_key_ends_the_command_with_status_2(self, capsys):
        assert main(["serve", "--model", "m", "engine.replica=2"]) == 2
        assert "engine.replica: unknown key. Nearest known key: engine.replicas" in capsys.readouterr().err

    @pytest.mark.parametrize(("positions", "lengths"), [(512, (128, 383)), (32768, (2048, 8192))])
    def test_lengths_follow_the_models_positions(self, positions, lengths, tmp_path):
        assert lengths_of(tmp_path, positions, ServedEngine()) == lengths

    def test_more_than_the_models_positions_is_refused(self, tmp_path):
        assert lengths_of(tmp_path, 512, ServedEngine(max_prompt_tokens=255, max_response_tokens=256)) == (
            255,
            256,
        )
        with pytest.raises(
            ConfigError,
            match=r"256 \+ engine.max_response_tokens=256 \+ 1 for the score is more than the 512 positions",
        ):
            lengths_of(tmp_path, 512, ServedEngine(max_prompt_tokens=256, max_response_tokens=256))

    def test_clients_see_no_path_of_the_server(self):
        path = "/home/me/runs/trial/checkpoints/step-000010/export"
        digest = hashlib.sha256(path.encode()).hexdigest()
        assert weights_name(SimpleNamespace(origin=path, path=path)) == f"trial/step-000010@{digest[:8]}"
        assert weights_name(SimpleNamespace(origin="models:/math/3", path="/x")) == "models:/math/3"
        assert weights_name(SimpleNamespace(origin="Org/Model-7B", path="Org/Model-7B")) == "Org/Model-7B"


def lengths_of(folder, positions, engine):
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "max_position_embeddings": positions, "dtype": "float32"})
    )
    model = SimpleNamespace(path=str(folder), origin="m", tokens=SimpleNamespace(eos_tokens=(2,), z_token=3))
    settings = engine_settings(model, engine)
    assert settings.dtype == "float32", "vLLM would make it bfloat16 unless told"
    return settings.max_prompt_tokens, settings.max_response_tokens


class Followed(Service):
    """A service whose models and deployments are words; what `broken` names cannot be deployed."""

    def __init__(self, newest, broken=()):
        self.newest, self.broken, self.deployed, self.said = newest, broken, [], []
        super().__init__(ServeConfig(models={"m": "run"}), self.said.append)

    def _resolved(self, name, hold):
        if isinstance(self.newest, ConfigError):
            raise self.newest
        return SimpleNamespace(path=f"/{self.newest}", origin=self.newest)

    def _deploy(self, name, model):
        self.deployed.append(model.origin)
        if model.origin in self.broken:
            raise RunError("no replica started")


class Following(Service):
    """A service of real weights, whose deployments need no engine."""

    def _deploy(self, name, model):
        assert Path(model.path, "model.safetensors").exists()


def save_base(checkpoints, step):
    state = TrainingState(step, 1, {}, None, None, 0.0, None)
    checkpoints.save(state, lambda folder: shutil.copytree(BASE, folder / "export"))


def kept(checkpoints):
    return sorted(int(path.name.removeprefix("step-")) for path in checkpoints.folder.glob("step-*"))


class TestFollow:
    @pytest.fixture(autouse=True)
    def _no_key(self, monkeypatch):
        monkeypatch.delenv("LASER_API_KEY", raising=False)

    def test_new_weights_are_deployed_once(self):
        service = Followed("step 1")
        service.follow()
        assert service.deployed == []
        service.newest = "step 2"
        service.follow()
        service.follow()
        assert service.deployed == ["step 2"]
        assert service.served["m"].origin == "step 2"

    def test_weights_that_no_replica_starts_with_are_taken_back_and_not_tried_again(self):
        service = Followed("step 1", broken={"step 2"})
        service.newest = "step 2"
        service.follow()
        service.follow()
        assert service.deployed == ["step 2", "step 1"]
        service.newest = "step 3"
        service.follow()
        assert (service.deployed[2:], service.served["m"].origin) == (["step 3"], "step 3")

    def test_the_weights_that_are_served_are_not_pruned(self, tmp_path):
        checkpoints = Checkpoints(tmp_path / "run", keep=1)
        save_base(checkpoints, 1)
        service = Following(ServeConfig(models={"m": str(tmp_path / "run")}), print)
        save_base(checkpoints, 2)
        save_base(checkpoints, 3)
        assert kept(checkpoints) == [1, 3], "a replica that starts now reads step 1 again"
        service.follow()
        assert service.served["m"].path.endswith("/step-000003/export")
        save_base(checkpoints, 4)
        assert kept(checkpoints) == [3, 4]
        service.holds["m"].close()
        save_base(checkpoints, 5)
        assert kept(checkpoints) == [5]

    def test_a_registry_that_is_down_changes_nothing(self):
        service = Followed("step 1")
        service.newest = ConfigError("MLflow cannot be reached")
        service.follow()
        assert (service.deployed, service.served["m"].origin) == ([], "step 1")
        assert "still step 1" in service.said[-1]


class TestDeployment:
    """What an operator gives to `serve deploy`."""

    FILE = Path(__file__).parents[2] / "experiments" / "serve" / "serve.yaml"

    def test_the_example_file_is_valid_and_its_applications_belong_together(self, monkeypatch):
        monkeypatch.setenv("LASER_API_KEY", "sk-1")
        deploy = ServeDeploySchema.model_validate(yaml.safe_load(self.FILE.read_text()))
        arguments = {application.name: application.args for application in deploy.applications}
        front = IngressConfig.model_validate(arguments.pop(INGRESS) | {"keys_file": None})
        assert front.models == list(arguments)
        for name, values in arguments.items():
            config = ReplicaConfig.model_validate(values)
            assert config.name == name
            assert config.limits == front.limits
            deployment = engine(config)._bound_deployment
            assert deployment._deployment_config.max_surge_percent == 100
            assert deployment._deployment_config.autoscaling_config.max_replicas == config.engine.max_replicas
            assert deployment.max_queued_requests == config.limits.queued
        assert ingress(front)._bound_deployment.num_replicas == 1
        environment = deploy.controller_options.runtime_env["env_vars"]
        assert environment == controller_environment(front.limits) | {"LASER_MAX_BODY_MIB": "4"}
        assert float(environment["LASER_MAX_BODY_MIB"]) == front.limits.body_mib
        assert load_attr(environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])()[0].kwargs == {
            "body_mib": 4.0
        }


class ByteTokenizer:
    """A token is a byte."""

    def decode(self, token_ids, **_):
        return bytes(token_ids).decode(errors="replace")


def streamed(text, stops=()):
    """What is told at each byte, and at the end."""
    stream = StreamedText(ByteTokenizer(), list(stops))
    told = []
    for byte in text.encode():
        told.append(stream.add([byte]))
        if stream.stopped:
            return [*told, stream.end()], stream
    return [*told, stream.end()], stream


class TestStreamedText:
    def test_a_character_comes_when_it_is_complete(self):
        told, _ = streamed("aé✓b")
        assert told == ["a", "", "é", "", "", "✓", "b", ""]

    def test_what_may_begin_a_stop_string_is_held_back(self):
        told, stream = streamed("12ab", ["abc"])
        assert told == ["", "", "1", "2", "ab"]
        assert not stream.stopped

    def test_the_first_stop_string_ends_it_and_is_not_told(self):
        told, stream = streamed("1+1=2;\n3", ["\n3", "=2;"])
        assert stream.stopped
        assert "".join(told) == stream.text == "1+1"

    def test_a_stop_string_inside_one_piece(self):
        stream = StreamedText(ByteTokenizer(), ["="])
        assert (stream.add(b"1+1=2=3"), stream.end(), stream.text) == ("1+1", "", "1+1")

    def test_an_incomplete_character_at_the_end_is_shown_as_such(self):
        stream = StreamedText(ByteTokenizer(), [])
        assert (stream.add(b"a\xe2\x9c"), stream.end()) == ("", "a\ufffd")

    def test_without_stops_one_piece_is_all_of_the_text(self):
        stream = StreamedText(ByteTokenizer(), [])
        assert (stream.add("a✓".encode()), stream.end()) == ("a✓", "")


def test_answers_share_a_class_when_math_verify_says_so():
    class Verifier:
        asked = 0

        def pool_answers(self, answers):
            self.asked += 1
            return [0, 0] if set(answers) == {"1/2", "0.5"} else [0, 1]

    verifier = Verifier()
    answers = AnswerClasses(verifier)
    texts = [r"\boxed{1/2}", r"\boxed{3}", r"so \boxed{0.5}", "none", r"\boxed{3}", r"\boxed{"]
    assert asyncio.run(classes(answers, texts)) == [0, 1, 0, -1, 1, -1]
    assert verifier.asked == 2, "equal texts need no check"


def test_a_start_of_the_comparer_that_failed_is_tried_again_by_the_next_vote():
    # A start fails by itself only after two minutes on an overloaded machine, hence the function that fails once.
    worker = object()
    starts = iter([ConfigError("not warm within 120 s"), worker])

    def start():
        outcome = next(starts)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def votes():
        comparer = AnswerComparer(start)
        together = await asyncio.gather(comparer.ready(), comparer.ready(), return_exceptions=True)
        assert [str(outcome) for outcome in together] == ["not warm within 120 s"] * 2, (
            "two votes share a start"
        )
        assert [await comparer.ready(), await comparer.ready()] == [worker, worker]

    asyncio.run(votes())


async def classes(answers, texts):
    return [await answers.class_of(text) for text in texts]


class TestIngress:
    """What becomes of a replica's failures, with a replica that does as it is told."""

    def ask(self, *outcomes, deadline_s=5.0):
        config = IngressConfig(models=["m"], limits=Limits(deadline_s=deadline_s))
        front = SimpleNamespace(
            config=config, metrics=IngressMetrics(), _retry_after_s=1
        )  # a deployment's start needs Ray
        front._explain = lambda error: Ingress._explain(front, error)
        self.calls = []
        front._handle = lambda model: SimpleNamespace(
            score=SimpleNamespace(remote=lambda body: self.call(outcomes))
        )
        self.front = front

        async def run():
            with _Call(front, "score", "m") as call:
                return (await Ingress._ask(front, call, "score", "body"))[0]

        return asyncio.run(run())

    def call(self, outcomes):
        outcome = outcomes[len(self.calls)]
        call = FakeCall(outcome)
        self.calls.append(call)
        return call

    def status(self, *outcomes, **more):
        with pytest.raises(ApiError) as caught:
            self.ask(*outcomes, **more)
        assert self.front.metrics.total_in_flight() == 0
        return caught.value.status

    def test_another_replica_is_asked_once_when_one_dies(self):
        assert self.ask(RayActorError(), "scores") == "scores"
        assert self.status(RayActorError(), RayActorError()) == 503
        assert len(self.calls) == 2

    def test_a_full_queue_is_429_with_a_time_to_come_back_and_not_asked_again(self):
        assert self.status(BackPressureError(8, 8)) == 429
        assert len(self.calls) == 1

    def test_a_late_answer_is_504_and_its_work_is_taken_back(self):
        assert self.status(asyncio.Event, deadline_s=0.05) == 504
        assert self.calls[0].cancelled

    def test_a_client_that_leaves_is_no_failure_of_the_service(self):
        with pytest.raises(TaskCancelledError):
            self.ask(TaskCancelledError())
        text = self.front.metrics.text()
        assert 'laser_requests_total{endpoint="score",model="m",status="499"} 1.0' in text
        assert self.front.metrics.total_in_flight() == 0

    def test_a_refusal_of_the_replica_is_the_answer(self):
        assert self.status(ApiError(422, "too long")) == 422


def test_the_decoding_thread_outlives_who_asked_it_something():
    """A request cancelled before its turn is left out; one cancelled during its turn is done, and neither stops the thread."""
    engine_, done, futures = object.__new__(Engine), [], [Future() for _ in range(3)]
    engine_._commands = queue.SimpleQueue()
    futures[0].cancel()
    actions = [lambda: done.append(0), lambda: (futures[1].cancel(), done.append(1)), lambda: done.append(2)]
    for action, future in zip(actions, futures, strict=True):
        engine_._commands.put((action, future))
    engine_._run_commands(wait=True)
    assert done == [1, 2]
    assert futures[2].done()


class FakeCall:
    """A response of Ray Serve: a value, an error to raise, or (a class) something to wait for in vain."""

    def __init__(self, outcome):
        self.outcome, self.cancelled = outcome, False

    def __await__(self):
        return self.result().__await__()

    async def result(self):
        if isinstance(self.outcome, type):
            await self.outcome().wait()
        if isinstance(self.outcome, Exception) and not isinstance(self.outcome, ApiError):
            raise self.outcome
        return self.outcome

    def cancel(self):
        self.cancelled = True


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


def test_one_page_of_metrics_tells_replicas_apart_and_counts_who_waits():
    ingresses = [IngressMetrics(), IngressMetrics()]
    for number, metrics in enumerate(ingresses):
        metrics.in_flight.labels("m").set(3 + number)
        metrics.requests.labels("chat", "m", "200").inc(10)
    replica = (
        "# HELP laser_replica_requests r\n# TYPE laser_replica_requests gauge\nlaser_replica_requests 5.0\n"
    )
    pages = {("laser-ingress", number): metrics.text() for number, metrics in enumerate(ingresses)} | {
        ("m", 0): replica
    }
    lines = merged(pages).decode().splitlines()
    for number in range(2):
        labels = f'{{application="laser-ingress",endpoint="chat",model="m",replica="{number}",status="200"}}'
        assert f"laser_requests_total{labels} 10.0" in lines
    assert 'laser_replica_requests{application="m",replica="0"} 5.0' in lines
    assert "laser_queue_depth 2.0" in lines, "3 + 4 in flight, 5 of them with a replica"
    assert len([line for line in lines if line == "# TYPE laser_requests_total counter"]) == 1
