"""Models to MLflow's registry and back, through a real server that keeps their files."""

import pytest
from mlflow import MlflowClient

from orchestrator.errors import ConfigError
from orchestrator.models import registry
from orchestrator.models.registry import fetch_model, register_model


@pytest.fixture
def client(mlflow_server):
    return MlflowClient(tracking_uri=mlflow_server.uri)


@pytest.fixture
def run_id(client):
    return client.create_run("0").info.run_id


@pytest.fixture
def model(tmp_path):
    """A folder as a run exports it, behind the link that leads to the newest checkpoint."""
    folder = tmp_path / "checkpoints" / "step-000003" / "export"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (tmp_path / "export").symlink_to("checkpoints/step-000003/export")
    return tmp_path / "export"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_comes_back_as_it_was(mlflow_server, client, run_id, model, tmp_path):
    version = register_model(mlflow_server.uri, "back", model, run_id, tags={"laser.step": "3"})
    assert version == "1"
    registered = client.get_model_version_by_alias("back", "best")
    assert (registered.run_id, registered.tags["laser.step"]) == (run_id, "3")
    found = fetch_model("models:/back@best", mlflow_server.uri, tmp_path / "cache")
    assert contents(found) == contents(model)
    assert len(contents(found)) == 3
    assert fetch_model("models:/back/1", mlflow_server.uri, tmp_path / "cache") == found
    assert [
        path.name for path in (tmp_path / "cache" / "back").iterdir() if not path.name.endswith(".lock")
    ] == [found.name]


def test_the_same_model_is_uploaded_once_and_another_is_another_version(
    mlflow_server, client, run_id, model, tmp_path, monkeypatch
):
    uploads = []
    log_artifacts = MlflowClient.log_artifacts
    monkeypatch.setattr(
        MlflowClient,
        "log_artifacts",
        lambda *arguments: (uploads.append(arguments[-1]), log_artifacts(*arguments)),
    )
    assert register_model(mlflow_server.uri, "twice", model, run_id) == "1"
    assert register_model(mlflow_server.uri, "twice", model, run_id, tags={"laser.step": "4"}) == "1"
    assert client.get_model_version("twice", "1").tags["laser.step"] == "4"
    assert len(uploads) == 1
    first = contents(model)
    (model / "model.safetensors").write_bytes(b"other")
    assert register_model(mlflow_server.uri, "twice", model, run_id) == "2"
    other_run = client.create_run("0").info.run_id
    assert register_model(mlflow_server.uri, "twice", model, other_run, alias="trial") == "3"
    assert len(uploads) == 3
    assert contents(fetch_model("models:/twice/1", mlflow_server.uri, tmp_path / "cache")) == first, (
        "a version does not change"
    )
    assert (
        contents(fetch_model("models:/twice@best", mlflow_server.uri, tmp_path / "cache"))[
            "model.safetensors"
        ]
        == b"other"
    )
    assert client.get_model_version_by_alias("twice", "best").version == "2"


def test_a_killed_download_leaves_nothing_under_the_final_name(
    mlflow_server, run_id, model, tmp_path, monkeypatch
):
    register_model(mlflow_server.uri, "killed", model, run_id)
    download = registry.download_artifacts

    def die(artifact_uri, dst_path, tracking_uri):
        download(artifact_uri=f"{artifact_uri}/config.json", dst_path=dst_path, tracking_uri=tracking_uri)
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "download_artifacts", die)
    with pytest.raises(KeyboardInterrupt):
        fetch_model("models:/killed@best", mlflow_server.uri, tmp_path / "cache")
    assert [
        path.name for path in (tmp_path / "cache" / "killed").iterdir() if not path.name.startswith(".")
    ] == []
    monkeypatch.undo()
    assert contents(fetch_model("models:/killed@best", mlflow_server.uri, tmp_path / "cache")) == contents(
        model
    )


def test_a_missing_version_is_refused_with_the_existing_ones(mlflow_server, run_id, model, tmp_path):
    register_model(mlflow_server.uri, "there", model, run_id)
    for wanted in ("models:/there@newest", "models:/there/7"):
        with pytest.raises(
            ConfigError,
            match=rf"{wanted}: .* has no such version of there; it has versions 1 and aliases best \(1\)",
        ):
            fetch_model(wanted, mlflow_server.uri, tmp_path)
    with pytest.raises(
        ConfigError, match=r"models:/absent@best: .* no registered model of this name; it has .*there"
    ):
        fetch_model("models:/absent@best", mlflow_server.uri, tmp_path)


@pytest.mark.parametrize(
    "uri", ["models:/name", "models:/name/best", "runs:/abc/model", "models:/name@best/x", "name"]
)
def test_an_address_that_names_no_model_is_refused(uri, tmp_path):
    with pytest.raises(ConfigError, match="write models:/NAME@ALIAS or models:/NAME/VERSION"):
        fetch_model(uri, "http://127.0.0.1:9", tmp_path)


def test_an_unavailable_server_and_an_empty_folder_are_refused(tmp_path, model):
    with pytest.raises(
        ConfigError,
        match=r"fetching models:/x@best: MLflow at http://127.0.0.1:9 cannot be reached: .*refused",
    ):
        fetch_model("models:/x@best", "http://127.0.0.1:9", tmp_path)
    with pytest.raises(
        ConfigError, match=r"registering x: MLflow at http://127.0.0.1:9 cannot be reached: .*refused"
    ):
        register_model("http://127.0.0.1:9", "x", model, "abc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: holds no model to register"):
        register_model("http://127.0.0.1:9", "x", tmp_path / "empty", "abc")


def test_a_run_that_does_not_exist_is_refused(mlflow_server, model):
    with pytest.raises(ConfigError, match=r"registering x: .* refused: .*not found"):
        register_model(mlflow_server.uri, "x", model, "0" * 32)


def test_a_model_beside_a_sqlite_database_comes_back_too(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    server = registry.Server(uri)
    run = server.client.create_run(server.experiment_id("laser"))
    assert register_model(uri, "local", model, run.info.run_id) == "1"
    assert register_model(uri, "local", model, run.info.run_id) == "1"
    assert contents(fetch_model("models:/local@best", uri, tmp_path / "cache")) == contents(model)
