"""MLflow's model registry: a folder becomes a named version with an alias, and a version a folder.

In: a Hugging Face folder, or `models:/NAME@ALIAS`. Out: a version that any machine can serve, or a whole
folder on this one.
"""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from orchestrator.errors import ConfigError
from orchestrator.storage.files import locked
from orchestrator.tracking.client_environment import patient_requests
from orchestrator.tracking.server import Server, may_pass

ARTIFACT = "model"
CONTENT_TAG = "laser.sha256"
"""Tag of a version with the hash of its files."""
DOWNLOAD_TIMEOUT_S = 7200.0
"""How long another process of this machine may download the same version."""

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def register_model(
    uri: str, name: str, folder: Path, run_id: str, alias: str = "best", tags: Mapping[str, str] | None = None
) -> str:
    """Make a Hugging Face folder a version of the registered model `name`, and point `alias` at it.

    The files become artifacts `model/<hash of their content>` of the run, so that no later version
    overwrites them. If the alias names a version of this run with this content already, nothing is
    uploaded.

    Args:
        uri: The MLflow server.
        run_id: The MLflow run that trained the model.
        tags: Of the version.

    Returns:
        The version.

    Raises:
        ConfigError: The folder is missing or empty, or the server cannot be reached, does not know the run,
            or refuses.
    """
    source = folder.resolve()
    if not source.is_dir() or not any(source.iterdir()):
        raise ConfigError(
            f"{folder}: holds no model to register; name a Hugging Face folder such as a run's export/"
        )
    digest = _content_hash(source)
    server = Server(uri)
    with _explained(server, f"registering {name}"):
        client = server.client
        current = _version_by_alias(client, name, alias)
        if current is not None and current.run_id == run_id and current.tags.get(CONTENT_TAG) == digest:
            for key, value in (tags or {}).items():
                client.set_model_version_tag(name, current.version, key, value)
            return str(current.version)
        path = f"{ARTIFACT}/{digest[:12]}"
        artifacts = client.get_run(run_id).info.artifact_uri
        with patient_requests():
            client.log_artifacts(run_id, str(source), path)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            name, f"{artifacts}/{path}", run_id, tags={**(tags or {}), CONTENT_TAG: digest}
        )
        client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)


def fetch_model(uri_of_model: str, tracking_uri: str, into: Path | None = None) -> Path:
    """Download a registered model, once.

    A killed download leaves nothing under the folder's final name.

    Args:
        uri_of_model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: The MLflow server.
        into: The folder for all downloaded models; `~/.cache/laser/models` when None.

    Returns:
        The model's folder, `<into>/<name>/<version>-<hash of its source>`.

    Raises:
        ConfigError: The URI is malformed, the name, alias or version does not exist (the message lists
            those that do), or the server cannot be reached.
    """
    wanted = _MODEL_URI.fullmatch(uri_of_model)
    if wanted is None:
        raise ConfigError(
            f"{uri_of_model!r} names no registered model: write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    server = Server(tracking_uri)
    with _explained(server, f"fetching {uri_of_model}"):
        version = _find(server, uri_of_model, wanted["name"], wanted["alias"], wanted["version"])
        final = _folder_of(version, into or Path.home() / ".cache" / "laser" / "models")
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final.with_name(f".{final.name}.lock"), DOWNLOAD_TIMEOUT_S):
            if not final.exists():
                _download(server, version, final)
    return final


def _folder_of(version: ModelVersion, into: Path) -> Path:
    """A folder for this version alone.

    Another server, or a name that was deleted and used again, may have another model of this name and
    version.
    """
    identity = hashlib.sha256(f"{version.source} {version.creation_timestamp}".encode()).hexdigest()
    return into / version.name / f"{version.version}-{identity[:12]}"


def _download(server: Server, version: ModelVersion, final: Path) -> None:
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    location = server.client.get_model_version_download_uri(version.name, version.version)
    with patient_requests():
        downloaded = download_artifacts(artifact_uri=location, dst_path=str(partial), tracking_uri=server.uri)
    Path(downloaded).rename(final)
    shutil.rmtree(partial, ignore_errors=True)


def _find(
    server: Server, uri_of_model: str, name: str, alias: str | None, number: str | None
) -> ModelVersion:
    client = server.client
    version = (
        _version_by_alias(client, name, alias) if alias else _version_by_number(client, name, str(number))
    )
    if version is not None:
        return version
    known = sorted(model.name for model in client.search_registered_models())
    if name not in known:
        raise ConfigError(
            f"{uri_of_model}: MLflow at {server.shown} has no registered model of this name; it has "
            f"{', '.join(known) or 'none'}"
        )
    versions = sorted(int(found.version) for found in client.search_model_versions(f"name = '{name}'"))
    aliases = client.get_registered_model(name).aliases
    raise ConfigError(
        f"{uri_of_model}: MLflow at {server.shown} has no such version of {name}; it has versions "
        f"{', '.join(map(str, versions)) or 'none'} and aliases "
        f"{', '.join(f'{key} ({aliases[key]})' for key in sorted(aliases)) or 'none'}"
    )


def _version_by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if _is_missing(error):
            return None
        raise


def _version_by_number(client: MlflowClient, name: str, number: str) -> ModelVersion | None:
    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        if _is_missing(error):
            return None
        raise


def _is_missing(error: MlflowException) -> bool:
    """Whether there is no such model, version or alias.

    MLflow's stores call a missing alias an invalid parameter.
    """
    return error.error_code == "RESOURCE_DOES_NOT_EXIST" or (
        error.error_code == "INVALID_PARAMETER_VALUE" and "not found" in str(error)
    )


def _content_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of all files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder)}\0{digest}\0".encode())
    return total.hexdigest()


@contextlib.contextmanager
def _explained(server: Server, action: str) -> Iterator[None]:
    """Raise any failure of the server as a ConfigError that names the action."""
    try:
        server.ping()
        yield
    except ConfigError:
        raise
    except Exception as error:  # artifact stores have their own kinds of errors
        problem = "cannot be reached" if may_pass(error) else "refused"
        raise ConfigError(f"{action}: MLflow at {server.shown} {problem}: {server.explain(error)}") from error
