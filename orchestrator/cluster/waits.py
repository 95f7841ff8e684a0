"""Fetches values from the cluster within a deadline, with an error that says what did not come."""

from collections.abc import Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError

from orchestrator.errors import PoolError

FETCH_TIMEOUT_S = 300.0
"""How long a value that is there may take to come from its node."""


def fetched(refs: ObjectRef | Sequence[ObjectRef], what: str, timeout_s: float = FETCH_TIMEOUT_S) -> Any:
    """The value of a ref, or the values of several.

    Args:
        what: What they are, for the message.
        timeout_s: Of calls that still run it is the time that they may take.

    Raises:
        PoolError: They did not come in time.
        ray.exceptions.RayError: A call failed, or a value was lost.
    """
    try:
        return ray.get(refs if isinstance(refs, ObjectRef) else list(refs), timeout=timeout_s)
    except GetTimeoutError as error:
        raise PoolError(
            f"{what} did not come within {timeout_s:g} s: is a node stopped, or cut off from the others? "
            "`ray list nodes` shows them"
        ) from error
