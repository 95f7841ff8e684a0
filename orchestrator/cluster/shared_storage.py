"""Check, before a run starts anything, that its nodes see the same files.

Learner ranks write their shards of a checkpoint on their own node, or to `run.remote`. Ranks and engines read
the model on their own node.
"""

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.waits import fetched
from orchestrator.errors import ConfigError, LaserError
from orchestrator.storage.remote import RemoteStorage

APPEARS_S = 10.0
"""How long a network file system may take to show one node the files of another."""


def check_shared_folders(
    folder: Path, model: str, pools_of_node: Mapping[str, str], remote: str | None = None
) -> None:
    """Check that nodes with learner ranks share the run's folder, and that nodes with ranks or engines have
    the model.

    Args:
        folder: The run's folder on this machine.
        model: The model's folder; a hub name is not checked, because every node downloads it for itself.
        pools_of_node: Node ids, each with the names of the pools there: `learning, rollout`.
        remote: `run.remote`, which the nodes share in place of the folder.

    Raises:
        ConfigError: A node does not; the message names each of them, and what to mount or to set.
    """
    this_node = ray.get_runtime_context().get_node_id()
    # This process sees its own folders. It may have credentials for a URL that actors on the same node do not
    # have.
    checked = {
        node: pools
        for node, pools in pools_of_node.items()
        if node != this_node or (remote and "learning" in pools)
    }
    if not checked:
        return
    with _marked(folder, remote) as mark:
        answers = {}
        for node, pools in checked.items():
            run_folder = str(folder.resolve()) if "learning" in pools else None
            reads_model = "learning" in pools or "rollout" in pools
            model_folder = model if reads_model and Path(model).is_absolute() else None
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(inspect_node).options(num_cpus=0, scheduling_strategy=there)
            answers[node] = task.remote(run_folder, remote, model_folder, mark)
        found = {node: fetched(answer, f"what node {node} sees") for node, answer in answers.items()}
    problems = [
        f"  node {address} ({checked[node]}): {problem}\n"
        for node, (address, problem) in found.items()
        if problem
    ]
    if problems:
        place = f"run.remote={remote}" if remote else f"run.dir={folder.parent}"
        raise ConfigError(
            f"{place}, model.path={model}: not all nodes of the run share them:\n{''.join(problems)}"
            "Mount shared storage at the same path on every node, and name folders there "
            "(laser submit: --storage). For checkpoints, run.remote is enough: give every node's environment "
            "the credentials."
        )


def inspect_node(folder: str | None, remote: str | None, model: str | None, mark: str) -> tuple[str, str]:
    """Runs on a node: its address, and what is wrong there; empty when all is well.

    Args:
        folder: The run's folder; None when the node needs no checkpoints.
        remote: The URL to look at in place of `folder`.
        model: The model's folder; None when the node needs none.
        mark: The name of a file that the driver has written into the run's folder.
    """
    problems = []
    if folder is not None:
        problem = (
            _url_problem(remote, Path(folder).name, mark) if remote else _folder_problem(Path(folder), mark)
        )
        problems += [problem] if problem else []
    if model is not None and not Path(model).exists():
        problems.append(f"there is no {model}")
    return ray.util.get_node_ip_address(), "; ".join(problems)


@contextmanager
def _marked(folder: Path, remote: str | None) -> Iterator[str]:
    """Keep a file in the run's folder, or under its URL, while the context lasts. Yields its name."""
    mark = f".shared-{uuid.uuid4().hex}"
    storage = RemoteStorage(remote, folder.name) if remote else None
    if storage is None:
        (folder / mark).touch()
    else:
        storage.write(mark, b"laser")
    try:
        yield mark
    finally:
        if storage is not None:
            storage.delete(mark)
        for left in folder.glob(f"{mark}*"):  # nodes have added files of their own
            left.unlink(missing_ok=True)


def _folder_problem(folder: Path, mark: str) -> str | None:
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


def _url_problem(url: str, name: str, mark: str) -> str | None:
    try:
        storage = RemoteStorage(url, name)
        if storage.read(mark) is None:
            return f"{storage.shown} is another place there"
        storage.try_out()
    except LaserError as error:
        return str(error)
    return None
