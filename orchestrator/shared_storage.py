"""Whether the nodes of a run see the folders that they share, asked of each node before anything is started.

Learner ranks write their shards of a checkpoint where they run, and ranks and engines read the model there.
"""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import ConfigError

APPEARS_S = 10.0
"""How long a network file system may take to show one node what another has written."""


def check_shared_folders(folder: Path, model: str, pools_of_node: Mapping[str, str]) -> None:
    """See that the learner's nodes read and write `folder` as this process does, and that those with learner or engines have the model.

    Args:
        folder: The run's folder.
        model: The model's folder; a hub name, which every node fetches for itself, is not looked for.
        pools_of_node: Node ids, each with the names of the pools there.

    Raises:
        ConfigError: Names the nodes that do not, and what to mount.
    """
    here = ray.get_runtime_context().get_node_id()
    others = {node: pools for node, pools in pools_of_node.items() if node != here}
    mark = f".shared-{uuid.uuid4().hex}"
    (folder / mark).touch()
    try:
        looks = {}
        for node, pools in others.items():
            wanted = str(folder.resolve()) if "learning" in pools else None
            needed = model if Path(model).is_absolute() and ("learning" in pools or "rollout" in pools) else None
            on_node = NodeAffinitySchedulingStrategy(node, soft=False)
            looks[node] = ray.remote(_look).options(num_cpus=0, scheduling_strategy=on_node).remote(wanted, needed, mark)
        found = {node: ray.get(look) for node, look in looks.items()}
    finally:
        for left in folder.glob(f"{mark}*"):
            left.unlink(missing_ok=True)
    problems = [f"  node {address} ({others[node]}): {problem}" for node, (address, problem) in found.items() if problem]
    if problems:
        raise ConfigError(
            f"run.dir={folder.parent}, model.path={model}: not all nodes of the run share them:\n" + "\n".join(problems) + "\n"
            "Mount shared storage at one path on every node, and name folders there (laser submit: --storage)."
        )


def _look(folder: str | None, model: str | None, mark: str) -> tuple[str, str]:
    """On a node: its address, and what is wrong there."""
    problems = []
    if folder is not None:
        deadline = time.monotonic() + APPEARS_S
        while not (Path(folder) / mark).exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        if not (Path(folder) / mark).exists():
            problems.append(f"{folder} is not the same folder there")
        else:
            try:
                (Path(folder) / f"{mark}-{uuid.uuid4().hex}").touch()
            except OSError as error:
                problems.append(f"{folder} cannot be written there ({error.strerror})")
    if model is not None and not Path(model).exists():
        problems.append(f"there is no {model}")
    return ray.util.get_node_ip_address(), "; ".join(problems)
