"""What tests of jobs write into a folder to submit from."""

import json
from pathlib import Path

import yaml

from orchestrator.jobs.staging import stage


def write(path, tree):
    Path(path).write_text(yaml.safe_dump(tree))


def staged(job, storage="~/laser"):
    stage(job, storage, Path("staged"))
    job = json.loads(Path("staged/job.json").read_text())
    return sorted(
        str(file.relative_to("staged")) for file in Path("staged").rglob("*") if file.is_file()
    ), job
