"""docker-compose.yml against the Compose schema, our own rules and, where installed, docker compose."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.scripts.scripts import start as ray_start

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
SECRETS = dict.fromkeys(re.findall(r"^(\w+)=$", EXAMPLE, re.MULTILINE), "secret")
ALWAYS = {"head", "verifier", "mlflow", "postgres", "artifacts", "bucket", "prometheus", "grafana"}
BYTES = {"m": 2**20, "g": 2**30}


def interpolated(node):
    """The tree with its variables replaced, as by a .env that sets only the secrets."""
    if isinstance(node, dict):
        return {key: interpolated(value) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolated(value) for value in node]
    if isinstance(node, str):
        return VARIABLE.sub(lambda found: SECRETS[found[1]] if found[2] == "?" else found[3], node)
    return node


COMPOSE = interpolated(yaml.safe_load(TEXT))
SERVICES = COMPOSE["services"]
RAY = [name for name, service in SERVICES.items() if service.get("command", [""])[0] == "ray"]


def size(text: str) -> int:
    return int(text[:-1]) * BYTES[text[-1]]


def test_it_fits_the_schema():
    jsonschema.validate(COMPOSE, json.loads((ROOT / "tests" / "compose-spec.json").read_text()))


def test_the_schema_would_notice():
    schema = json.loads((ROOT / "tests" / "compose-spec.json").read_text())
    for wrong in (
        {"restarts": "always"},
        {"depends_on": {"head": {"condition": "healthy"}}},
        {"mem_limit": {"max": 1}},
    ):
        broken = {**COMPOSE, "services": {**SERVICES, "head": {**SERVICES["head"], **wrong}}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_and_supervised(name):
    service = SERVICES[name]
    one_shot = service["restart"] == "no"
    assert one_shot == (name == "bucket")
    assert one_shot or service["restart"] == "unless-stopped"
    assert one_shot != ("healthcheck" in service), "a service that stays up has a health check"
    assert size(service["mem_limit"]) >= 2**30
    assert service["init"] is True
    assert service["stop_grace_period"] == "1m"
    assert re.fullmatch(r"\S+:v?\d[\w.-]*", service["image"]), "a pinned version"
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), "published to this machine alone"


def test_dependencies_are_services_that_can_meet_their_condition():
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            wanted = (
                "service_completed_successfully" if SERVICES[other]["restart"] == "no" else "service_healthy"
            )
            assert how["condition"] == wanted, f"{name} on {other}"
            assert "profiles" not in SERVICES[other], f"{other} is there in every profile"


def test_volumes_are_declared_and_used_and_what_is_mounted_from_here_exists():
    named, used = set(COMPOSE["volumes"]), set()
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source, target, *_ = mount.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                used.add(source)
    assert used == named
    assert all("runs:/mnt/laser" in SERVICES[name]["volumes"] for name in RAY), "checkpoints are shared"


def test_profiles():
    def started(profile: str) -> set[str]:
        return {name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}

    assert started("none") == ALWAYS
    assert started("cpu") == ALWAYS | {"rollout", "learner"}
    assert started("gpu") == ALWAYS | {"rollout-gpu", "learner-gpu"}
    for name, service in SERVICES.items():
        gpu = "gpu" in service.get("profiles", [])
        assert ("deploy" in service) == gpu
        assert service["image"].endswith("-gpu") == gpu, name
        assert service.get("build", {}).get("target") == (
            service["image"].rpartition("-")[2] if "build" in service else None
        )


def test_images_of_our_own_have_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = {service["image"] for service in SERVICES.values() if "build" in service}
    assert ours == {f"laser-orchestrator:{version}-{target}" for target in ("cpu", "gpu", "mlflow")}


def test_secrets_have_no_default_and_are_all_in_the_example():
    required = {found[1] for found in VARIABLE.finditer(TEXT) if found[2] == "?"}
    assert (
        required
        == set(SECRETS)
        == {"RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD"}
    )
    assert all(found[2] for found in VARIABLE.finditer(TEXT)), "every variable is required or has a default"
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable):
                assert value == "secret", f"{name}: {variable} is written down"


def test_the_example_shows_every_default_as_it_is():
    defaults = {(found[1], found[3]) for found in VARIABLE.finditer(TEXT) if found[2] == "-"}
    assert set(re.findall(r"^# (\w+)=(\S+)$", EXAMPLE, re.MULTILINE)) == defaults


def test_the_command_of_the_example_makes_every_secret(tmp_path):
    command = re.search(r"^#   (\(umask.*\))$", EXAMPLE, re.MULTILINE)[1]
    assert f"#   {command}" in TEXT, "docker-compose.yml names the same command"
    shutil.copy(ROOT / ".env.example", tmp_path)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=20)
    made = dict(re.findall(r"^(\w+)=(.*)$", (tmp_path / ".env").read_text(), re.MULTILINE))
    assert made.pop("COMPOSE_PROFILES") == "cpu"
    assert set(made) == set(SECRETS)
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in made.values())
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", RAY)
def test_nodes_are_started_with_options_that_ray_knows(name):
    program, command, *arguments = SERVICES[name]["command"]
    assert (program, command) == ("ray", "start")
    options = ray_start.make_context("start", arguments).params  # refuses unknown options
    assert options["block"]
    assert options["metrics_export_port"] == 8080
    assert options["head"] == (name == "head")
    assert (
        options["object_store_memory"] < size(SERVICES[name]["shm_size"]) < size(SERVICES[name]["mem_limit"])
    )
    if name == "head":
        assert (int(options["port"]), int(options["dashboard_port"]), options["num_cpus"]) == (6379, 8265, 0)
    else:
        assert options["address"] == "head:6379"
        assert json.loads(options["resources"]) == {name.removesuffix("-gpu"): 100}
        assert options["num_cpus"] >= 1
    environment = SERVICES[name]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"] == "secret"
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_gpu_workers_have_no_gpu_in_common():
    visible = [
        SERVICES[name]["environment"]["CUDA_VISIBLE_DEVICES"].split(",")
        for name in ("rollout-gpu", "learner-gpu")
    ]
    assert not set(visible[0]) & set(visible[1])


def test_mlflow_keeps_artifacts_in_the_bucket_that_is_made_and_answers_by_the_name_that_nodes_call():
    command = SERVICES["mlflow"]["command"]
    assert f"--artifacts-destination=s3://{SERVICES['bucket']['command'][-1]}/artifacts" in command
    assert "--backend-store-uri=postgresql+psycopg2://mlflow@postgres:5432/mlflow" in command
    assert "--allowed-hosts=mlflow:5000,localhost:5000,127.0.0.1:5000" in command


def test_the_store_accepts_the_keys_that_mlflow_has():
    (identity,) = json.loads(COMPOSE["configs"]["s3"]["content"])["identities"]
    assert identity["credentials"] == [{"accessKey": "secret", "secretKey": "secret"}]
    for name in ("mlflow", "bucket"):
        given = SERVICES[name]["environment"]
        assert (given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"]) == ("secret", "secret")
        assert given["AWS_ENDPOINT_URL_S3"] == "http://artifacts:8333"


def test_prometheus_finds_the_file_in_which_ray_lists_its_nodes():
    scraped = yaml.safe_load((ROOT / "dashboards" / "prometheus.yml").read_text())["scrape_configs"]
    (file,) = next(job for job in scraped if job["job_name"] == "ray")["file_sd_configs"][0]["files"]
    assert Path(file) == Path("/tmp/ray/prom_metrics_service_discovery.json")
    assert "ray:/tmp/ray" in SERVICES["head"]["volumes"]
    assert "ray:/tmp/ray:ro" in SERVICES["prometheus"]["volumes"]


class TestDockerCompose:
    """docker compose itself reads the file; its command `config` needs no Docker engine."""

    @pytest.fixture(scope="class")
    def compose(self):
        candidates = (["docker", "compose"], ["docker-compose"])
        for program in candidates:
            if (
                shutil.which(program[0])
                and not subprocess.run(
                    [*program, "version"], capture_output=True, timeout=20, check=False
                ).returncode
            ):
                return program
        pytest.skip(
            "docker compose is not installed: only the schema and our own rules checked docker-compose.yml"
        )

    @staticmethod
    def config(compose, environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        clean = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
        command = [shutil.which(compose[0]), *compose[1:], "--env-file", str(environment), *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=30, check=False
        )

    @pytest.fixture
    def environment(self, tmp_path):
        (tmp_path / "env").write_text("".join(f"{name}=secret\n" for name in SECRETS))
        return tmp_path / "env"

    def test_it_is_accepted_and_means_what_we_read(self, compose, environment):
        found = self.config(compose, environment, "--profile", "*", "config", "--format", "json")
        assert found.returncode == 0, found.stderr
        assert not found.stderr, "no warnings"
        services = json.loads(found.stdout)["services"]
        assert set(services) == set(SERVICES)
        for name, service in services.items():
            assert service.get("command") == SERVICES[name].get("command")
            assert service["image"] == SERVICES[name]["image"]

    @pytest.mark.parametrize(
        ("profile", "workers"), [("cpu", {"rollout", "learner"}), ("gpu", {"rollout-gpu", "learner-gpu"})]
    )
    def test_a_profile_chooses_the_workers(self, compose, environment, profile, workers):
        environment.write_text(environment.read_text() + f"COMPOSE_PROFILES={profile}\n")
        found = self.config(compose, environment, "config", "--services")
        assert set(found.stdout.split()) == ALWAYS | workers

    @pytest.mark.parametrize("missing", SECRETS)
    def test_a_missing_secret_is_refused_by_name(self, compose, environment, missing):
        environment.write_text(environment.read_text().replace(f"{missing}=secret", f"{missing}="))
        found = self.config(compose, environment, "config", "--quiet")
        assert found.returncode != 0
        assert f"required variable {missing} is missing a value: set it in .env" in found.stderr
