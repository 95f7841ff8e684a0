"""The nodes of a Ray cluster, and the connection to it."""

import logging
import os
import re

import ray
from ray._private.utils import read_ray_address

from orchestrator.cluster.machine import usable_cpus
from orchestrator.config.proxies import spare_this_machine
from orchestrator.errors import ConfigError
from orchestrator.storage import addresses
from orchestrator.storage.addresses import why_unreachable

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
    _refuse_silent(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, ValueError) as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}). Start the cluster "
            "(ray start --head), or unset RAY_ADDRESS to use this machine"
        ) from error


def _refuse_silent(address: str) -> None:
    """Refuse an address where no cluster answers, for which `ray.init` itself would wait many minutes."""
    if address == "local":
        return
    # The file of the newest `ray start` here; without one Ray looks for its processes, and says at once.
    found = read_ray_address() if address == "auto" else address
    if found is None:
        return
    parts = re.fullmatch(r"(ray://)?\[?(?P<host>[^/\s]+?)\]?:(?P<port>\d{1,5})", found)
    if parts is None:
        raise ConfigError(
            f"RAY_ADDRESS={address}: is not the address of a cluster: write HOST:PORT, with the port of the "
            "cluster's head (6379 unless chosen), or unset RAY_ADDRESS to use this machine"
        )
    reason = why_unreachable(parts["host"], int(parts["port"]))
    if reason is None and parts[1] is None:
        reason = _why_no_head(found)
    if reason is not None:
        place = "there" if found == address else f"at {found}"
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray cluster answers {place} "
            f"({reason}). Start the cluster (ray start --head), correct RAY_ADDRESS, or unset it to use this "
            "machine"
        )


def _why_no_head(address: str) -> str | None:
    """Why what listens at an address is not the head of a cluster; None where it is."""
    import grpc  # type: ignore[import-untyped]
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            head.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=addresses.ANSWER_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return None  # a head that wants a token, which `ray.init` sends
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"no answer within {addresses.ANSWER_S:g} s"
            return "what listens there is not the head of a Ray cluster"
    return None


def _start() -> None:
    # Ray tells of the token that it makes for its own cluster; nobody else will ever need that token.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=int(local_nodes()[0]["CPU"]),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        # They would import Ray for nothing: each actor has an environment of its own, and so its own process.
        _system_config={"prestart_worker_first_driver": False},
    )
