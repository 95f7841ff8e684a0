"""Whether the node that this process belongs to is still part of its cluster. Ray does not tell a driver."""

import socket

import ray
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.exceptions import RayError
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from orchestrator.errors import PoolError

HEAD_ANSWER_S = 5.0
"""How long the head may take to say which nodes there are; the next look asks again."""


def refuse_lost_node() -> None:
    """Refuse to wait on when no value can come any more.

    Raises:
        PoolError: The raylet of this node has ended, or the cluster has given the node up.
    """
    if not ray.is_initialized():
        return
    if is_lost():
        raise PoolError(
            "Ray's raylet on this node has ended, so nothing that the run waits for can come. Its log is "
            "raylet.out in Ray's log folder (/tmp/ray/session_latest/logs). Start the cluster again"
        )
    if _is_given_up():
        raise PoolError(
            "the cluster has given up this node, whose raylet did not answer in time, so nothing that the "
            "run waits for can come. Was the machine suspended, or cut off from the head? Start Ray "
            "here again (ray stop; ray start)"
        )


def is_lost() -> bool:
    """Whether the raylet of this process's node has ended."""
    return ray.is_initialized() and _raylet_is_gone()


def _raylet_is_gone() -> bool:
    node = ray._private.worker._global_node
    if node is None or not node.raylet_socket_name:
        return False
    with socket.socket(socket.AF_UNIX) as raylet:
        raylet.settimeout(1.0)
        try:
            raylet.connect(node.raylet_socket_name)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False  # it is busy, or stopped: the head decides
    return False


def _is_given_up() -> bool:
    client = internal_kv_get_gcs_client()
    if client is None:
        return False
    own = ray.get_runtime_context().get_node_id()
    try:
        nodes = client.get_all_node_info(timeout=HEAD_ANSWER_S)
    except RayError:
        return False  # Ray itself ends this process when the head stays away
    return any(node.hex() == own and info.state == GcsNodeInfo.DEAD for node, info in nodes.items())
