"""`laser serve`: runs the service on Ray Serve.

It starts the models' applications and then the ingress, waits until every engine answers, and follows new
weights if asked to. On SIGTERM or Ctrl-C it refuses new requests, waits for those in flight, and stops Serve.
"""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from orchestrator.cluster.nodes import connect
from orchestrator.config.serving import INGRESS, IngressConfig, ServeConfig
from orchestrator.data.eos import turn_end_warning
from orchestrator.errors import ConfigError, RunError
from orchestrator.models.resolve import ResolvedModel, resolve_model
from orchestrator.serving.app import INGRESS_DEPLOYMENT, engine, ingress
from orchestrator.serving.keys import KEY_VARIABLE, Keys
from orchestrator.serving.proxy import controller_environment
from orchestrator.serving.served_engine import served_engine_settings
from orchestrator.terminal import say_line

DRAIN_POLL_S = 0.2
DRAIN_ANSWER_S = 10.0
"""Seconds that an ingress replica may take to say how many requests it still has."""


class Service:
    """The running service.

    Args:
        config: The settings of `laser serve`.
        say: Takes progress in lines for a person.

    Attributes:
        served: The model that each name serves now.
        refused: Paths of new weights that no replica could start with.
    """

    def __init__(self, config: ServeConfig, say: Callable[[str], None] = say_line) -> None:
        """Resolve the models; nothing starts yet.

        Raises:
            ConfigError: Other machines reach the address and there is no API key, or a model cannot be
                served.
        """
        keys = Keys.load(config.keys_file)
        if not keys.hashes and not config.loopback:
            raise ConfigError(
                f"host {config.host} can be reached from other machines, and there is no API key: write keys "
                f"into a file and give keys_file=FILE, or set {KEY_VARIABLE}, or listen on 127.0.0.1"
            )
        self.config = config
        self.keys = keys
        self.say = say
        self.holds = {name: contextlib.ExitStack() for name in config.models}
        """Keep the served weights from being pruned, because a replica that starts later reads them again."""
        self.served = {name: self.resolve(name, hold) for name, hold in self.holds.items()}
        self.refused: set[str] = set()

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C; a second signal stops without waiting for requests.

        Raises:
            ConfigError: The address is in use, the cluster is too small, or it runs Ray Serve already.
            RunError: An application does not start.
        """
        try:
            self.start()
            # Ray's own handler, which `start` has installed, would end the process at once.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            while True:
                time.sleep(self.config.follow_every_s)
                if self.config.follow:
                    self.follow()
        except KeyboardInterrupt:
            self.drain()
        finally:
            self.remove()

    def start(self) -> None:
        """Start all applications; returns when every engine answers. Raises as `run`."""
        config, on_cluster = self.config, bool(os.environ.get("RAY_ADDRESS"))
        if not on_cluster:
            self._refuse_address_in_use()
        self._refuse_what_cannot_fit(connect())
        if on_cluster and serve.status().proxies:
            raise ConfigError(
                "Ray Serve runs on this cluster already, and its address and limits cannot be changed: add "
                "the models to its file and use `serve deploy` (experiments/serve/serve.yaml), or stop it "
                "with `serve shutdown`"
            )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            http_options={"host": config.host, "port": config.port},
            controller_options={"runtime_env": {"env_vars": controller_environment(config.limits)}},
        )
        for name, model in self.served.items():
            self.say(f"{name}: starting {config.engine.replicas} engine replica(s) of {model.origin}")
            tokens, key = model.tokens, "engine.eos_tokens"
            warning = turn_end_warning(tokens.chat, tokens.eos_tokens, key)
            if warning is not None and model.card is None:
                self.say(f"{name}: warning: {warning}")
            self.deploy(name, model)
        application = ingress(
            IngressConfig(
                models=list(self.served),
                # Hashes only, because Ray's dashboard shows an application's arguments.
                key_hashes=self.keys.hashes,
                open=not self.keys.hashes,
                replicas=config.ingress_replicas,
                cpus=config.ingress_cpus,
                limits=config.limits,
            )
        )
        self._run(application, INGRESS, "/")
        self.say(f"ready: http://{config.host}:{config.port}/v1 serves {', '.join(self.served)}")

    def follow(self) -> None:
        """Deploy the weights that the models' names mean now, where they are new.

        The replicas of the old weights stop when those of the new ones are ready.
        """
        for name, model in self.served.items():
            with contextlib.ExitStack() as hold:
                try:
                    newest = self.resolve(name, hold)
                # The registry is unavailable, or the run is replacing its export.
                except ConfigError as error:
                    self.say(f"{name}: still {model.origin}; looking for newer weights failed: {error}")
                    continue
                if newest.path != model.path and newest.path not in self.refused:
                    self._replace(name, model, newest, hold)

    def drain(self) -> None:
        """Refuse new requests, and wait at most `limits.drain_s` for those in flight."""
        self.say("stopping: no new requests")
        deadline = time.monotonic() + self.config.limits.drain_s
        try:
            handle = serve.get_deployment_handle(INGRESS_DEPLOYMENT, app_name=INGRESS)
            while left := sum(handle.broadcast("drain").results(timeout_s=DRAIN_ANSWER_S)):
                if time.monotonic() >= deadline:
                    break
                time.sleep(DRAIN_POLL_S)
        except (RayServeException, RayActorError, TimeoutError) as error:
            self.say(f"stopped; the ingress did not say whether requests were cut off ({error})")
            return
        self.say(f"stopped; {left} requests were cut off" if left else "stopped; every request was answered")

    def remove(self) -> None:
        """Remove the applications: on a cluster only ours, else all of Ray."""
        if not os.environ.get("RAY_ADDRESS"):
            ray.shutdown()
        else:
            with contextlib.suppress(RayServeException):  # Serve may never have started.
                for name in (INGRESS, *self.served):
                    serve.delete(name)
        for hold in self.holds.values():
            hold.close()

    def resolve(self, name: str, hold: contextlib.ExitStack) -> ResolvedModel:
        """The model that a name means now; its weights are kept until `hold` closes.

        Raises:
            ConfigError: There is no such model, or it cannot be served with these settings.
        """
        model = resolve_model(
            self.config.models[name],
            hold=hold,
            eos_tokens=self.config.engine.eos_tokens,
            eos_key="engine.eos_tokens",
        )
        served_engine_settings(model, self.config.engine)
        return model

    def deploy(self, name: str, model: ResolvedModel) -> None:
        """Start a model's application, or replace its weights; returns when its engines answer.

        Raises:
            RunError: No replica starts.
        """
        # A path without links, or a version's number: all replicas read the same weights whenever they start.
        pinned = model.origin if model.origin.startswith("models:/") else model.path
        self._run(engine(self.config.replica(name, pinned)), name, None)

    def _replace(self, name: str, old: ResolvedModel, new: ResolvedModel, hold: contextlib.ExitStack) -> None:
        self.say(f"{name}: {new.origin} replaces {old.origin}")
        try:
            self.deploy(name, new)
        except RunError as error:
            self.say(f"{name}: back to {old.origin}: {error}")
            self.refused.add(new.path)
            self.deploy(
                name, old
            )  # Else Serve would try the new weights for ever and start no replica that works.
            return
        self.holds[name].close()
        self.holds[name] = hold.pop_all()
        self.served[name] = new
        self.say(f"{name}: serves {new.origin}")

    def _run(self, application: Any, name: str, route_prefix: str | None) -> None:
        """Deploy an application and wait until it runs. Raises RunError."""
        try:
            serve.run(application, name=name, route_prefix=route_prefix)
        except RuntimeError as error:  # A deployment failed; Serve's status has the replicas' messages.
            deployments = serve.status().applications[name].deployments.values()
            lines = [line for deployment in deployments for line in deployment.message.splitlines()]
            messages = [line.strip() for line in lines if line.strip()]
            raise RunError(
                f"{name} could not be started: {messages[-1] if messages else error}; its log is in "
                "/tmp/ray/session_latest/logs/serve"
            ) from error

    def _refuse_address_in_use(self) -> None:
        try:
            socket.create_server((self.config.host, self.config.port)).close()
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {self.config.host}:{self.config.port} ({error.strerror}); "
                "choose another port"
            ) from error

    def _refuse_what_cannot_fit(self, nodes: list[dict[str, float]]) -> None:
        settings, models = self.config.engine, len(self.config.models)
        replicas = settings.replicas * models + (settings.replicas if self.config.follow else 0)
        cpus = replicas * settings.cpus + self.config.ingress_replicas * self.config.ingress_cpus
        gpus = replicas * settings.gpus * settings.tensor_parallel
        for resource, needed in (("CPU", cpus), ("GPU", gpus)):
            available = sum(node.get(resource, 0.0) for node in nodes)
            if needed > available + 1e-9:
                rollout = " (new weights start beside the old ones)" if self.config.follow else ""
                raise ConfigError(
                    f"{replicas} engine replica(s){rollout} and the ingress need {needed:g} {resource}s, but "
                    f"the cluster has {available:g}: lower engine.cpus (fractions share a CPU), engine.gpus "
                    "or engine.replicas, or name a larger cluster in RAY_ADDRESS"
                )
