"""The applications that an operator gives to `serve deploy`."""

from pathlib import Path

import uvicorn.config
import yaml
from ray._common.utils import import_attr as load_attr
from ray.serve.schema import ServeDeploySchema

from orchestrator.config.serving import INGRESS, IngressConfig, ReplicaConfig
from orchestrator.serving.app import engine, ingress
from orchestrator.serving.proxy import controller_environment


class TestDeployment:
    """What an operator gives to `serve deploy`."""

    FILE = Path(__file__).parents[2] / "experiments" / "serve" / "serve.yaml"

    def test_the_example_file_is_valid_and_its_applications_belong_together(self, monkeypatch):
        monkeypatch.setenv("LASER_API_KEY", "sk-1")
        monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "set back after the test")
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
        assert environment == controller_environment(front.limits)
        assert float(environment["LASER_MAX_BODY_MIB"]) == front.limits.body_mib
        assert load_attr(environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])()[0].kwargs == {
            "body_mib": 4.0
        }
