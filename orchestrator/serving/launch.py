"""`laser serve`: the service on Ray Serve from its settings to its last answer.

Starts the models' applications and then the ingress, waits until every engine answers, follows new weights when asked to, and on
SIGTERM or Ctrl-C stops: first no new requests, then those in flight end, then Serve does.
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
from orchestrator.errors import ConfigError, RunError
from orchestrator.models.resolve import Model, resolve_model
from orchestrator.serving.app import engine, ingress
from orchestrator.serving.keys import KEY_VARIABLE, Keys
from orchestrator.serving.proxy import controller_environment
from orchestrator.serving.replica import engine_settings


def _say(line: str) -> None:
    print(line, flush=True)


class Service:
    """The running service.

    Args:
        say: Told what happens, in lines for a person.
    """

    def __init__(self, config: ServeConfig, say: Callable[[str], None] = _say) -> None:
        """Raises ConfigError before anything is started: an open address without a key, a model that is none, a cluster too small."""
        keys = Keys.load(config.keys_file)
        if not keys.hashes and not config.loopback:
            raise ConfigError(
                f"host {config.host} can be reached from other machines, and there is no API key: write keys into a file and give "
                f"keys_file=FILE, or set {KEY_VARIABLE}, or listen on 127.0.0.1"
            )
        self.config, self.keys, self.say = config, keys, say
        self.holds = {name: contextlib.ExitStack() for name in config.models}
        """Keep the served weights from being pruned: a replica that starts later reads them again."""
        self.served = {name: self._resolved(name, hold) for name, hold in self.holds.items()}
        self.refused: set[str] = set()
        """New weights that no replica could be started with."""

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C; a second one does not wait for requests. Raises RunError when the service cannot be started."""
        try:
            self.start()
            signal.signal(
                signal.SIGTERM, signal.default_int_handler
            )  # after Ray has set a handler of its own
            while True:
                time.sleep(self.config.follow_every_s)
                if self.config.follow:
                    self.follow()
        except KeyboardInterrupt:
            self.drain()
        finally:
            self.remove()

    def start(self) -> None:
        """Return when every engine answers."""
        config, on_cluster = self.config, bool(os.environ.get("RAY_ADDRESS"))
        if not on_cluster:
            try:
                socket.create_server((config.host, config.port)).close()
            except OSError as error:
                raise ConfigError(
                    f"{config.host}:{config.port} cannot be listened on ({error.strerror}); choose another port"
                ) from error
        self._refuse_what_cannot_fit(connect())
        if on_cluster and serve.status().proxies:
            raise ConfigError(
                "Ray Serve runs on this cluster already, and its address and limits cannot be changed: add the models to its file and use "
                "`serve deploy` (experiments/serve/serve.yaml), or stop it with `serve shutdown`"
            )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            http_options={"host": config.host, "port": config.port},
            controller_options={"runtime_env": {"env_vars": controller_environment(config.limits)}},
        )
        for name, model in self.served.items():
            self.say(f"{name}: starting {config.engine.replicas} engine replica(s) of {model.origin}")
            self._deploy(name, model)
        application = ingress(
            IngressConfig(
                models=list(self.served),
                # Hashes, since Ray shows an application's arguments to whoever sees its dashboard.
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
        """Serve what the models' names mean by now. The replicas of the old weights stop when those of the new ones are ready."""
        for name, model in self.served.items():
            with contextlib.ExitStack() as hold:
                try:
                    newest = self._resolved(name, hold)
                except (
                    ConfigError
                ) as error:  # a registry that is down, or an export that is just being replaced
                    self.say(f"{name}: still {model.origin}; looking for newer weights failed: {error}")
                    continue
                if newest.path == model.path or newest.path in self.refused:
                    continue
                self.say(f"{name}: {newest.origin} replaces {model.origin}")
                try:
                    self._deploy(name, newest)
                except RunError as error:
                    self.say(f"{name}: back to {model.origin}: {error}")
                    self.refused.add(newest.path)
                    self._deploy(name, model)  # or Serve would go on trying, and start no replica that works
                    continue
                self.holds[name].close()
                self.holds[name] = hold.pop_all()
                self.served[name] = newest
                self.say(f"{name}: serves {newest.origin}")

    def drain(self) -> None:
        """Refuse new requests, and let those in flight end for at most `limits.drain_s`."""
        self.say("stopping: no new requests")
        deadline = time.monotonic() + self.config.limits.drain_s
        try:
            handle = serve.get_deployment_handle("ingress", app_name=INGRESS)
            while (
                left := sum(handle.broadcast("drain").results(timeout_s=10))
            ) and time.monotonic() < deadline:
                time.sleep(0.2)
        except (RayServeException, RayActorError, TimeoutError) as error:
            self.say(f"stopped; the ingress did not say whether requests were cut off ({error})")
            return
        self.say(f"stopped; {left} requests were cut off" if left else "stopped; every request was answered")

    def remove(self) -> None:
        """Take the applications away: all of Ray when it is ours, on a cluster nothing else that runs there."""
        if not os.environ.get("RAY_ADDRESS"):
            ray.shutdown()
        else:
            with contextlib.suppress(RayServeException):  # where Serve never came to run
                for name in (INGRESS, *self.served):
                    serve.delete(name)
        for hold in self.holds.values():
            hold.close()

    def _resolved(self, name: str, hold: contextlib.ExitStack) -> Model:
        model = resolve_model(self.config.models[name], hold=hold)
        engine_settings(model, self.config.engine)
        return model

    def _deploy(self, name: str, model: Model) -> None:
        # A path that stays, or a version's number: what a replica reads must not depend on when it starts.
        pinned = model.origin if model.origin.startswith("models:/") else model.path
        application = engine(self.config.replica(name, pinned))
        self._run(application, name, None)

    def _run(self, application: Any, name: str, route_prefix: str | None) -> None:
        """Deploy an application and wait for it. Raises RunError when it does not come up."""
        try:
            serve.run(application, name=name, route_prefix=route_prefix)
        except (
            RuntimeError
        ) as error:  # Serve's own word for a deployment that failed; its status knows what the replicas said
            deployments = serve.status().applications[name].deployments.values()
            told = [
                line for deployment in deployments for line in deployment.message.splitlines() if line.strip()
            ]
            said = told[-1].strip() if told else str(error)
            raise RunError(
                f"{name} could not be started: {said}; its log is in /tmp/ray/session_latest/logs/serve"
            ) from error

    def _refuse_what_cannot_fit(self, nodes: list[dict[str, float]]) -> None:
        settings, models = self.config.engine, len(self.config.models)
        replicas = settings.replicas * models + (settings.replicas if self.config.follow else 0)
        cpus = replicas * settings.cpus + self.config.ingress_replicas * self.config.ingress_cpus
        gpus = replicas * settings.gpus * settings.tensor_parallel
        for resource, needed in (("CPU", cpus), ("GPU", gpus)):
            there = sum(node.get(resource, 0.0) for node in nodes)
            if needed > there + 1e-9:
                rollout = (
                    ", those of the next weights beside the old ones included" if self.config.follow else ""
                )
                raise ConfigError(
                    f"{replicas} engine replica(s){rollout} and the ingress need {needed:g} {resource}s, but {there:g} are there: lower "
                    "engine.cpus (fractions share a CPU), engine.gpus or engine.replicas, or name a larger cluster in RAY_ADDRESS"
                )
