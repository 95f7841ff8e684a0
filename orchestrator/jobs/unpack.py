"""The start of a job on the cluster: its inputs go to a folder of its own on the cluster's storage.

In: the folder that `staging` filled, which Ray has unpacked and made the working directory. Out: the arguments of
the `laser` command that the job runs there.
"""

import json
import os
import shutil
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.jobs.staging import CONFIG_FILE, JOB_FILE
from orchestrator.terminal import LINES_EVERY_VARIABLE


def unpack() -> list[str]:
    """Copy the inputs, change into their folder, and return the arguments of the job's command.

    Raises:
        ConfigError: The storage cannot be written on this node.
    """
    staged = Path.cwd()
    job = json.loads((staged / JOB_FILE).read_text())
    storage = Path(job["storage"]).expanduser()
    # Ray's copy has another path after each change, and a sweep or an evaluation is known by the paths of its inputs.
    folder = storage / "inputs" / job["name"]
    try:
        _put_inputs(staged, folder, job["inputs"])
    except OSError as error:
        raise ConfigError(
            f"storage {storage} cannot be used ({error}): submit with --storage and a folder that can be written on all nodes"
        ) from error
    os.chdir(folder)
    os.environ.setdefault("COLUMNS", "120")
    os.environ[LINES_EVERY_VARIABLE] = "1"
    config = str(staged / CONFIG_FILE)
    results = [f"{key}={json.dumps(str(storage / path))}" for key, path in job["results"].items()]
    return [job["kind"], *(["--config", config] if job["kind"] == "eval" else [config]), *results]


def _put_inputs(staged: Path, folder: Path, inputs: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in inputs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (staged / name).is_dir():
            shutil.copytree(staged / name, folder / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(staged / name, folder / name)
