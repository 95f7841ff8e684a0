"""What is sent with a job: the code, the configuration as resolved here, and the local files that it names.

In: a configuration file and overrides. Out: a `Job`, and a folder that Ray unpacks on each node as the job's
working directory.
"""

import glob
import importlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.cluster.bundles import bundles_for, bundles_without_learner
from orchestrator.cluster.nodes import Resources
from orchestrator.config.evaluation import EvalConfig, default_folder, requested_sets
from orchestrator.config.paths import checked_path, homes_elsewhere
from orchestrator.config.resume import dump_named
from orchestrator.config.schema import Section
from orchestrator.config.sources import FILE_SUFFIXES, DataConfig, source_paths
from orchestrator.config.sweep import SweepConfig, base_config, load_sweep
from orchestrator.config.texts import read_yaml
from orchestrator.config.training import RunConfig, TrackingConfig, load_config
from orchestrator.data.tokens import looks_local
from orchestrator.errors import ConfigError
from orchestrator.models.resolve import RUNS
from orchestrator.storage.folders import results_of

JobKind = Literal["train", "sweep", "eval"]

UPLOAD_LIMIT_MIB = 100
"""The largest request that the dashboard of a Ray cluster accepts."""

DISTRIBUTION = "laser-orchestrator"
PACKAGES = ("orchestrator", "actors", "dashboards", "experiments")
JOB_FILE, CONFIG_FILE, LAUNCHER = "job.json", "job.yaml", "launch.sh"

# Where Ray was started as .venv/bin/ray, PATH has no Python or another one. The raylet started the process
# that started this shell, and its command line has the Python of Ray's workers. Ray's `py_executable` does
# not help: it needs a path or a command here, where the cluster's path is not known, and it replaces the
# Python of Ray's workers, not the one of a job's command. Tried with Ray 2.60, a head started as
# .venv/bin/ray and `py_executable: python`: the job stayed PENDING, since no worker could start.
LAUNCH = """\
# Run a module with the Python that runs Ray itself.
raylet=$(cut -d' ' -f4 /proc/$PPID/stat)
python=$(tr '\\0' '\\n' < "/proc/$raylet/cmdline" | sed -n 's/^--python_worker_command=\\([^ ]*\\) .*/\\1/p')
exec "${python:-python}" -m "$@"
"""


@dataclass(frozen=True)
class Job:
    """A training run, a sweep or an evaluation to run on a cluster."""

    kind: JobKind
    name: str
    """Name of the run or sweep, or of the evaluation's folder."""
    config: Section
    folder: Path
    """Where its results go."""
    tracking: TrackingConfig
    runs: list[RunConfig] | list[EvalConfig]
    """What the cluster must have room for: the run itself, or each trial of a sweep."""
    inputs: dict[str, Path]
    """Files and folders of this machine, by the relative path that the configuration has for them."""
    results: dict[str, str]
    """Settings that name a folder for results by a relative path, with that path."""

    def refuse_too_large(self, nodes: list[Resources]) -> None:
        """Refuse a job that these nodes could never hold.

        Raises:
            ConfigError: The message has what the job needs and what the nodes have.
        """
        for config in self.runs:
            if isinstance(config, EvalConfig):
                rollout = config.rollout if config.model is not None else None
                bundles_without_learner(rollout, config.verification, nodes)
            else:
                bundles_for(config, nodes)


def load_job(config_file: Path, overrides: list[str]) -> Job:
    """The job of a configuration file.

    A file with a section `run` is a training run, one with a `space` a sweep, and any other an evaluation.

    Raises:
        ConfigError: The job's own command would refuse the file, or the file names a path that is neither
            here nor an absolute path on the cluster.
    """
    keys = read_yaml(config_file, "Give the path of a YAML configuration.")
    # The job reads its settings on the cluster, where `~` is another home folder.
    with homes_elsewhere():
        if not keys or "run" in keys:
            return _training(load_config(config_file, overrides))
        if "space" in keys:
            return _sweep(load_sweep(config_file, overrides))
        from orchestrator.evaluation.run import load_eval  # imports MLflow, which takes seconds

        return _evaluation(load_eval(config_file, {}, overrides))


def stage(job: Job, storage: str, folder: Path) -> None:
    """Fill `folder` with the job's code, inputs and settings.

    Args:
        storage: Folder on the cluster for results with relative paths.

    Raises:
        ConfigError: The inputs are larger than Ray accepts.
    """
    sizes = {
        name: sum(file.stat().st_size for file in _files(source)) / 2**20
        for name, source in job.inputs.items()
    }
    if sum(sizes.values()) > UPLOAD_LIMIT_MIB:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"{largest} is {sizes[largest]:.0f} MiB of {sum(sizes.values()):.0f} MiB that would be sent, and "
            f"a Ray cluster accepts at most {UPLOAD_LIMIT_MIB} MiB: put it on storage that all nodes mount, "
            "and give its absolute path there"
        )
    for package in PACKAGES:
        source = Path(importlib.import_module(package).__path__[0])
        for file in _files(source):
            # This package also has data, which is sent only where the configuration names it.
            if package != "experiments" or file.suffix == ".py":
                _copy(file, folder / package / file.relative_to(source))
    # An image without this distribution needs its metadata: the probe reads the requirements, and vLLM its
    # plug-in.
    distribution = importlib.metadata.distribution(DISTRIBUTION)
    about = folder / f"{DISTRIBUTION.replace('-', '_')}-{distribution.version}.dist-info"
    about.mkdir(parents=True)
    for name in ("METADATA", "entry_points.txt"):
        (about / name).write_text(distribution.read_text(name) or "")
    for name, source in job.inputs.items():
        for file in _files(source):
            _copy(file, folder / name / file.relative_to(source))
    (folder / LAUNCHER).write_text(LAUNCH)
    (folder / CONFIG_FILE).write_text(dump_named(job.config))
    described = {
        "kind": job.kind,
        "name": job.name,
        "storage": storage,
        "results": job.results,
        "inputs": list(job.inputs),
    }
    (folder / JOB_FILE).write_text(json.dumps(described, indent=2) + "\n")


def _training(config: RunConfig) -> Job:
    inputs = _local_models(config.model.path) | _local_data(*_data_paths(config.data))
    results = _relative({"run.dir": config.run.dir})
    return Job("train", config.run.name, config, config.folder, config.tracking, [config], inputs, results)


def _sweep(config: SweepConfig) -> Job:
    from orchestrator.sweeps.plan import SweepPlan  # imports MLflow, which takes seconds

    base = base_config(config)
    # With Optuna the trials are not known yet.
    runs = [trial.config for trial in SweepPlan(config, base).trials] or [base]

    def searched(key: str) -> list[Any]:
        """The values of a key in all trials."""
        values = config.space.get(key)
        return [] if values is None else list(getattr(values, values.kind))

    inputs = _local_models(base.model.path, *searched("model.path"))
    inputs |= _local_data(*_data_paths(base.data))
    for key in ("data.train", "data.eval"):
        inputs |= _local_data(*(path for value in searched(key) for path in source_paths(value)))
    if _is_portable(config.base):
        inputs[config.base] = Path(config.base)
    else:  # the base is always a file of this machine, unlike other absolute paths
        inputs["base.yaml"] = Path(checked_path(config.base))
        config = config.model_copy(update={"base": "base.yaml"})
    results = _relative({"settings.run.dir": base.run.dir})
    return Job("sweep", config.name, config, base.run.dir / config.name, base.tracking, runs, inputs, results)


def _evaluation(config: EvalConfig) -> Job:
    requests = requested_sets(config)
    folder = config.folder or default_folder(config, [request.name for request in requests])
    inputs = _local_data(
        *(request.source.path for request in requests),
        None if config.samples is None else str(config.samples),
    )
    if config.model is not None:
        inputs |= _model(config.model)
    results = _relative(
        {"dir": config.dir} | ({"folder": config.folder} if config.folder is not None else {})
    )
    return Job("eval", folder.name, config, folder, config.tracking, [config], inputs, results)


def _local_models(*names: str | None) -> dict[str, Path]:
    return _local(names, looks_local)


def _data_paths(data: DataConfig) -> list[str]:
    """All files that the settings of a run's data name."""
    template = [] if data.chat_template is None else [str(data.chat_template)]
    return [*(source.path for source in (*data.train, *(data.eval or ()))), *template]


def _local_data(*names: str | None) -> dict[str, Path]:
    """The data files that the names mean; of a pattern, the files that match it."""
    files = [file for name in names if name for file in (glob.glob(name, recursive=True) or [name])]
    return _local(files, lambda name: name.startswith(".") or name.endswith(FILE_SUFFIXES))


def _local(names: Iterable[str | None], is_path: Callable[[str], bool]) -> dict[str, Path]:
    """The names that are files or folders here.

    Paths that begin with `/` or `~` are the cluster's, other names the hub's.
    """
    found = {}
    for name in filter(None, names):
        path = Path(name)
        if _is_on_the_cluster(path) or not (path.exists() or is_path(name)):
            continue
        if not path.exists():
            raise ConfigError(
                f"{name}: not found (looked in {Path.cwd()}). For a file on the cluster's own storage give "
                "its absolute path there"
            )
        if not _is_portable(name):
            raise ConfigError(
                f"{name} is outside of {Path.cwd()}, and only files inside it are sent with a job: submit "
                "from a folder that holds both, or put it on storage that all nodes mount and give its "
                "absolute path there"
            )
        found[name] = path
    return found


def _model(name: str) -> dict[str, Path]:
    """The model that `laser eval --model` would find under this name here."""
    if name.startswith(("models:", "/", "~")):
        return {}
    for folder in (Path(name), RUNS / name):
        for weights in (folder, folder / "export"):
            if (weights / "config.json").is_file():
                return _local_models(str(weights))
        kind, results = results_of(folder) or (None, {})
        if kind == "sweep":
            raise ConfigError(
                f"model {name}: is a sweep; name the folder of one of its trials, such as "
                f"{folder}/trials/TRIAL"
            )
        if kind == "evaluation":
            raise ConfigError(
                f"model {name}: {folder} is the folder of an evaluation and holds no weights; name the "
                f"evaluated model ({results.get('model')})"
            )
    if looks_local(name):
        raise ConfigError(
            f"model {name}: not found here (looked in {Path.cwd()} and {RUNS}), and not a name on the hub. "
            "For a run on the cluster give its path there, such as ~/laser/runs/NAME"
        )
    return {}


def _relative(folders: dict[str, Path]) -> dict[str, str]:
    return {key: str(path) for key, path in folders.items() if not _is_on_the_cluster(path)}


def _is_on_the_cluster(path: Path) -> bool:
    return path.is_absolute() or str(path).startswith("~")


def _is_portable(name: str) -> bool:
    """Whether a path can be the same relative path in another folder."""
    return not _is_on_the_cluster(Path(name)) and ".." not in Path(name).parts


def _files(source: Path) -> Iterator[Path]:
    """The files below a folder, or the one file.

    Leaves out what Python compiles, and the files by which Ray would ignore others.
    """
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
