"""Whether the nodes of a run see what they share, asked of each node before anything is started.

Learner ranks write their shards of a checkpoint where they run, or to `run.remote`, and ranks and engines read the model where they run.
"""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import ConfigError, LaserError
from orchestrator.storage.remote import RemoteStorage

APPEARS_S = 10.0
"""How long a network file system may take to show one node what another has written."""


def check_shared_folders(
    folder: Path, model: str, pools_of_node: Mapping[str, str], remote: str | None = None
) -> None:
    """See that the learner's nodes read and write what this process does, and that those with learner or engines have the model.

    Args:
        folder: The run's folder, which the learner's nodes share unless there is a `remote`.
        model: The model's folder; a hub name, which every node fetches for itself, is not looked for.
        pools_of_node: Node ids, each with the names of the pools there.
        remote: `run.remote`, which they share instead.

    Raises:
        ConfigError: Names the nodes that do not, and what to mount or to set.
    """
    here = ray.get_runtime_context().get_node_id()
    # The driver sees its own folders. At a URL it may be let in where actors of its node are not: theirs is the environment of the node.
    asked = {
        node: pools
        for node, pools in pools_of_node.items()
        if node != here or (remote and "learning" in pools)
    }
    if not asked:
        return
    mark = f".shared-{uuid.uuid4().hex}"
    storage = RemoteStorage(remote, folder.name) if remote else None
    if storage is None:
        (folder / mark).touch()
    else:
        storage.write(mark, b"laser")
    try:
        looks = {}
        for node, pools in asked.items():
            wanted = str(folder.resolve()) if "learning" in pools else None
            needed = (
                model if Path(model).is_absolute() and ("learning" in pools or "rollout" in pools) else None
            )
            on_node = NodeAffinitySchedulingStrategy(node, soft=False)
            looks[node] = (
                ray.remote(_look)
                .options(num_cpus=0, scheduling_strategy=on_node)
                .remote(wanted, remote, needed, mark)
            )
        found = {node: ray.get(look) for node, look in looks.items()}
    finally:
        if storage is not None:
            storage.delete(mark)
        for left in folder.glob(f"{mark}*"):
            left.unlink(missing_ok=True)
    problems = [
        f"  node {address} ({asked[node]}): {problem}"
        for node, (address, problem) in found.items()
        if problem
    ]
    if problems:
        place = f"run.remote={remote}" if remote else f"run.dir={folder.parent}"
        raise ConfigError(
            f"{place}, model.path={model}: not all nodes of the run share them:\n"
            + "\n".join(problems)
            + "\n"
            "Mount shared storage at one path on every node, and name folders there (laser submit: --storage). For checkpoints run.remote "
            "will do, with credentials in every node's environment."
        )


def _look(folder: str | None, remote: str | None, model: str | None, mark: str) -> tuple[str, str]:
    """On a node: its address, and what is wrong there. Of `folder` and `remote` the latter is looked at, where both are given."""
    problems = []
    if folder is not None:
        problem = (
            _look_at_url(remote, Path(folder).name, mark) if remote else _look_at_folder(Path(folder), mark)
        )
        problems += [problem] if problem else []
    if model is not None and not Path(model).exists():
        problems.append(f"there is no {model}")
    return ray.util.get_node_ip_address(), "; ".join(problems)


def _look_at_folder(folder: Path, mark: str) -> str | None:
    deadline = time.monotonic() + APPEARS_S
    while not (folder / mark).exists():
        if time.monotonic() > deadline:
            return f"{folder} is not the same folder there"
        time.sleep(0.2)
    try:
        (folder / f"{mark}-{uuid.uuid4().hex}").touch()
    except OSError as error:
        return f"{folder} cannot be written there ({error.strerror})"
    return None


def _look_at_url(url: str, name: str, mark: str) -> str | None:
    try:
        storage = RemoteStorage(url, name)
        if storage.read(mark) is None:
            return f"{storage.shown} is another place there"
        storage.try_out()
    except LaserError as error:
        return str(error)
    return None
