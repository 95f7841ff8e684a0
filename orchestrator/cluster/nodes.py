"""The nodes of a Ray cluster, and the connection to it."""

import logging
import os

import ray

from orchestrator.cluster.machine import usable_cpus
from orchestrator.config.proxies import spare_this_machine
from orchestrator.errors import ConfigError

Resources = dict[str, float]
"""Amounts by Ray's name of the resource: `CPU`, `GPU`, or a custom one."""


def local_nodes() -> list[Resources]:
    """This machine as a cluster of one node, without starting Ray."""
    node: Resources = {"CPU": float(usable_cpus())}
    try:
        import torch

        node["GPU"] = float(torch.cuda.device_count())
    except ImportError:
        pass
    return [node]


def planned_nodes() -> list[Resources]:
    """The nodes that a run started now would use, without starting Ray.

    They are those of the cluster that this process is in or that RAY_ADDRESS names, else this machine.
    """
    return connect() if ray.is_initialized() or os.environ.get("RAY_ADDRESS") else local_nodes()


def connect() -> list[Resources]:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine. Returns the nodes' resources.

    Raises:
        ConfigError: No cluster answers at RAY_ADDRESS.
    """
    if not ray.is_initialized():
        spare_this_machine()  # before Ray starts processes, which inherit the environment
        if address := os.environ.get("RAY_ADDRESS"):
            _join(address)
        else:
            _start()
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, ValueError) as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}). Start the cluster "
            "(ray start --head), or unset RAY_ADDRESS to use this machine"
        ) from error


def _start() -> None:
    # Ray tells of the token that it makes for its own cluster; nobody else will ever need that token.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=int(local_nodes()[0]["CPU"]),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
    )
