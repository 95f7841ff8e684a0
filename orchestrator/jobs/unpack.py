"""The start of a job on the cluster: copies its inputs to a folder on the cluster's storage.

In: the folder that `staging` filled, which Ray has unpacked and made the working directory. Out: the
arguments of the `laser` command that the job runs.
"""

import json
import os
import shutil
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.jobs.staging import CONFIG_FILE, JOB_FILE
from orchestrator.terminal import STEP_RECORDS_VARIABLE


def unpack() -> list[str]:
    """Copy the inputs, change into their folder, and return the arguments of the job's command.

    Raises:
        ConfigError: The storage cannot be written on this node.
    """
    staged = Path.cwd()
    job = json.loads((staged / JOB_FILE).read_text())
    storage = Path(job["storage"]).expanduser()
    # A sweep or an evaluation is identified by the absolute paths of its inputs. Ray unpacks them into a
    # folder whose path changes with their content.
    folder = storage / "inputs" / job["name"]
    try:
        _put_inputs(staged, folder, job["inputs"])
    except OSError as error:
        raise ConfigError(
            f"storage {storage} cannot be used ({error}): submit with --storage and a folder that all nodes "
            "can write"
        ) from error
    os.chdir(folder)
    # Both variables concern this process alone, which runs the command next and whose log `laser jobs logs`
    # reads.
    os.environ.setdefault("COLUMNS", "120")
    os.environ[STEP_RECORDS_VARIABLE] = "1"
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
