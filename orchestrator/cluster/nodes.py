"""The nodes of a Ray cluster, and the connection to it."""

import logging
import os

import ray

from orchestrator.cluster.machine import usable_cpus
from orchestrator.errors import ConfigError

Resources = dict[str, float]


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
    """The cluster that a run would use: the one that this process is in or that RAY_ADDRESS names, else this machine. Starts nothing."""
    return connect() if ray.is_initialized() or os.environ.get("RAY_ADDRESS") else local_nodes()


def connect() -> list[Resources]:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine. Returns the nodes' resources.

    Raises:
        ConfigError: No cluster answers at RAY_ADDRESS.
    """
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if address:
            try:
                ray.init(address=address, log_to_driver=False, logging_level="WARNING")
            except (ConnectionError, ValueError) as error:
                raise ConfigError(
                    f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start it, or unset RAY_ADDRESS to use this machine"
                ) from error
        else:
            # A Ray of our own has a token of its own, and nobody needs to be told.
            logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
            cpus = int(local_nodes()[0]["CPU"])
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="WARNING",
            )
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
