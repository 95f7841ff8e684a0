"""The driver of a job, on the cluster: the same command as at home, in a folder of the run's own on the cluster's storage.

In: the folder that `staging` filled, which Ray has unpacked and made the working directory. Out: the command's exit status.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from orchestrator import cli
from orchestrator.jobs.staging import CONFIG_FILE, JOB_FILE
from orchestrator.progress import LINES_EVERY_VARIABLE


def main() -> int:
    staged = Path.cwd()
    job = json.loads((staged / JOB_FILE).read_text())
    storage = Path(job["storage"]).expanduser()
    # Ray's copy has another path after each change, and a sweep or an evaluation is known by the paths of its inputs.
    folder = storage / "inputs" / job["name"]
    try:
        _put_inputs(staged, folder, job["inputs"])
    except OSError as error:
        print(f"laser: storage {storage} cannot be used ({error}): submit with --storage and a folder that can be written on all nodes")
        return 2
    os.chdir(folder)
    os.environ.setdefault("COLUMNS", "120")
    os.environ[LINES_EVERY_VARIABLE] = "1"
    config = str(staged / CONFIG_FILE)
    results = [f"{key}={json.dumps(str(storage / path))}" for key, path in job["results"].items()]
    return cli.main([job["kind"], *(["--config", config] if job["kind"] == "eval" else [config]), *results])


def _put_inputs(staged: Path, folder: Path, inputs: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in inputs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (staged / name).is_dir():
            shutil.copytree(staged / name, folder / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(staged / name, folder / name)


if __name__ == "__main__":
    sys.exit(main())
