"""What a job takes to the cluster: the code, its configuration as resolved here, and the local files that this names.

In: a configuration file and overrides. Out: `Work`, and a folder that Ray unpacks on each node as the working directory of the job.
"""

import importlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from orchestrator.cluster.bundles import bundles_for, bundles_without_learner
from orchestrator.cluster.nodes import Resources
from orchestrator.config.evaluation import EvalConfig, default_folder, requested_sets
from orchestrator.config.schema import Section, dump_config
from orchestrator.config.sweep import SweepConfig, base_config, load_sweep
from orchestrator.config.training import RunConfig, TrackingConfig, load_config
from orchestrator.data.tokens import looks_local
from orchestrator.errors import ConfigError
from orchestrator.models.resolve import RUNS
from orchestrator.storage.folders import results_of

Kind = Literal["train", "sweep", "eval"]

UPLOAD_LIMIT_MIB = 100
"""What the dashboard of a Ray cluster takes in one request."""

DISTRIBUTION = "laser-orchestrator"
PACKAGES = ("orchestrator", "actors", "dashboards", "experiments")
JOB_FILE, CONFIG_FILE, LAUNCHER = "job.json", "job.yaml", "launch.sh"

LAUNCH = """\
# Run a module with the Python that runs Ray itself. PATH has none, or another, where Ray was started as .venv/bin/ray; but the raylet,
# whose child started this shell, was told.
raylet=$(cut -d' ' -f4 /proc/$PPID/stat)
python=$(tr '\\0' '\\n' < "/proc/$raylet/cmdline" | sed -n 's/^--python_worker_command=\\([^ ]*\\) .*/\\1/p')
exec "${python:-python}" -m "$@"
"""


@dataclass(frozen=True)
class Work:
    """A run, a sweep or an evaluation that is to be done elsewhere."""

    kind: Kind
    name: str
    """Of the run or sweep, or of the evaluation's folder."""
    config: Section
    folder: Path
    """Where its results go."""
    tracking: TrackingConfig
    runs: list[RunConfig] | list[EvalConfig]
    """What has to find room on the cluster: itself, or the trials of a sweep."""
    inputs: dict[str, Path]
    """Files and folders of this machine, by the relative path that the configuration calls them."""
    results: dict[str, str]
    """Settings that name a folder for results by a relative path."""

    def refuse_what_no_node_holds(self, nodes: list[Resources]) -> None:
        """Raises ConfigError, with what is needed and what is there, when the cluster could never place it."""
        for config in self.runs:
            if isinstance(config, EvalConfig):
                rollout = config.rollout if config.model is not None else None
                bundles_without_learner(rollout, config.verification, nodes)
            else:
                bundles_for(config, nodes)


def load_work(config_file: Path, overrides: list[str]) -> Work:
    """What a file asks for: a sweep has a `space`, a training run a section `run`, and anything else is an evaluation.

    Raises:
        ConfigError: It is refused as by the command that it is for, or it names a file that is neither here nor on the cluster.
    """
    try:
        keys = yaml.safe_load(config_file.read_text())
    except (OSError, yaml.YAMLError):
        keys = None
    if not isinstance(keys, dict) or "run" in keys:  # of what is no mapping any loader says so
        return _training(load_config(config_file, overrides))
    if "space" in keys:
        return _sweep(load_sweep(config_file, overrides))
    from orchestrator.evaluation.run import load_eval  # with MLflow, which takes seconds

    return _evaluation(load_eval(config_file, {}, overrides))


def stage(work: Work, storage: str, folder: Path) -> None:
    """Fill `folder`; `storage` is the folder on the cluster that relative paths of results go into.

    Raises:
        ConfigError: It would be more than Ray takes.
    """
    sizes = {
        name: sum(file.stat().st_size for file in _files(source)) / 2**20
        for name, source in work.inputs.items()
    }
    if sum(sizes.values()) > UPLOAD_LIMIT_MIB:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"{largest} is {sizes[largest]:.0f} MiB of {sum(sizes.values()):.0f} MiB that would be sent, and a Ray cluster takes at most "
            f"{UPLOAD_LIMIT_MIB} MiB: put it on storage that all nodes have mounted, and give its absolute path there"
        )
    for package in PACKAGES:
        source = Path(importlib.import_module(package).__path__[0])
        for file in _files(source):
            # Beside its code this package has data, of which only what is named is sent.
            if package != "experiments" or file.suffix == ".py":
                _copy(file, folder / package / file.relative_to(source))
    # For the requirements, and for vLLM, which finds its plugin there, in an image without this distribution.
    distribution = importlib.metadata.distribution(DISTRIBUTION)
    about = folder / f"{DISTRIBUTION.replace('-', '_')}-{distribution.version}.dist-info"
    about.mkdir(parents=True)
    for name in ("METADATA", "entry_points.txt"):
        (about / name).write_text(distribution.read_text(name) or "")
    for name, source in work.inputs.items():
        for file in _files(source):
            _copy(file, folder / name / file.relative_to(source))
    (folder / LAUNCHER).write_text(LAUNCH)
    (folder / CONFIG_FILE).write_text(dump_config(work.config))
    job = {
        "kind": work.kind,
        "name": work.name,
        "storage": storage,
        "results": work.results,
        "inputs": list(work.inputs),
    }
    (folder / JOB_FILE).write_text(json.dumps(job, indent=2) + "\n")


def _training(config: RunConfig) -> Work:
    inputs = _local_models(config.model.path) | _local_data(config.data.train, config.data.eval)
    results = _relative({"run.dir": config.run.dir})
    return Work("train", config.run.name, config, config.folder, config.tracking, [config], inputs, results)


def _sweep(config: SweepConfig) -> Work:
    from orchestrator.sweeps.plan import SweepPlan  # with MLflow, which takes seconds

    base = base_config(config)
    # Optuna is yet to propose its trials.
    runs = [trial.config for trial in SweepPlan(config, base).trials] or [base]

    def named(key: str, base_value: str | None) -> list[str | None]:
        """Of the base and of all trials."""
        values = config.space.get(key)
        return [base_value, *(getattr(values, values.kind) if values is not None else ())]

    inputs = _local_models(*named("model.path", base.model.path))
    inputs |= _local_data(*named("data.train", base.data.train), *named("data.eval", base.data.eval))
    if _is_portable(config.base):
        inputs[config.base] = Path(config.base)
    else:  # it is read here, so it is a file of this machine
        inputs["base.yaml"] = Path(config.base)
        config = config.model_copy(update={"base": "base.yaml"})
    results = _relative({"settings.run.dir": base.run.dir})
    return Work(
        "sweep", config.name, config, base.run.dir / config.name, base.tracking, runs, inputs, results
    )


def _evaluation(config: EvalConfig) -> Work:
    requests = requested_sets(config)
    folder = config.folder or default_folder(config, [request.name for request in requests])
    inputs = _local_data(
        *(request.source.source for request in requests),
        None if config.samples is None else str(config.samples),
    )
    if config.model is not None:
        inputs |= _model(config.model)
    results = _relative(
        {"dir": config.dir} | ({"folder": config.folder} if config.folder is not None else {})
    )
    return Work("eval", folder.name, config, folder, config.tracking, [config], inputs, results)


def _local_models(*names: str | None) -> dict[str, Path]:
    return _local(names, looks_local)


def _local_data(*names: str | None) -> dict[str, Path]:
    return _local(
        names, lambda name: name.startswith((".", "~")) or name.endswith((".jsonl", ".json", ".parquet"))
    )


def _local(names: Iterable[str | None], is_path: Callable[[str], bool]) -> dict[str, Path]:
    """Which of these are files or folders here; an absolute path is the cluster's, and a name that is no path the hub's."""
    found = {}
    for name in filter(None, names):
        path = Path(name)
        if path.is_absolute() or not (path.exists() or is_path(name)):
            continue
        if not path.exists():
            raise ConfigError(
                f"{name}: not found (looked in {Path.cwd()}). What is on the cluster's own storage is named by its absolute path there"
            )
        if not _is_portable(name):
            raise ConfigError(
                f"{name} is outside of {Path.cwd()}, and a job takes along what is in it: submit from a folder that has both, or put it on "
                "storage that all nodes have mounted and give its absolute path there"
            )
        found[name] = path
    return found


def _model(name: str) -> dict[str, Path]:
    """What `laser eval --model` would find under this name here."""
    if name.startswith(("models:", "/", "~")):
        return {}
    for folder in (Path(name), RUNS / name):
        for weights in (folder, folder / "export"):
            if (weights / "config.json").is_file():
                return _local_models(str(weights))
        kind, results = results_of(folder) or (None, {})
        if kind == "sweep":
            raise ConfigError(
                f"model {name}: is a sweep; name the folder of one of its trials, such as {folder}/trials/TRIAL"
            )
        if kind == "evaluation":
            raise ConfigError(
                f"model {name}: {folder} is the folder of an evaluation and holds no weights; name the model that was "
                f"evaluated ({results.get('model')})"
            )
    if looks_local(name):
        raise ConfigError(
            f"model {name}: neither here (looked in {Path.cwd()} and {RUNS}) nor a hub name. A run on the cluster is named by its path "
            "there, such as ~/laser/runs/NAME"
        )
    return {}


def _relative(folders: dict[str, Path]) -> dict[str, str]:
    return {key: str(path) for key, path in folders.items() if not path.is_absolute()}


def _is_portable(name: str) -> bool:
    """Whether a path means the same below another folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _files(source: Path) -> Iterator[Path]:
    """The files below a folder, or the one file; without what Python compiles, and what would tell Ray to leave files out."""
    candidates: Iterable[Path] = sorted(source.rglob("*")) if source.is_dir() else [source]
    for file in candidates:
        if (
            file.is_file()
            and "__pycache__" not in file.parts
            and file.name not in (".gitignore", ".rayignore")
        ):
            yield file


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
