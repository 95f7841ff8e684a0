"""A run that is started again waits for a node that its cluster lacks."""

import os
import time

import ray

from orchestrator.cluster.bundles import bundles_for
from orchestrator.cluster.nodes import planned_nodes
from orchestrator.config.resume import saved_settings
from orchestrator.config.schema import changed_settings
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.terminal import LOGGER
from orchestrator.training.context import RunContext

_LOOK_EVERY_S = 2.0
_POOLS = ("rollout.", "verification.", "learning.")
"""The sections that say what a run needs of a cluster."""


def refuse_what_has_no_room(config: RunConfig, context: RunContext) -> None:
    """Refuse a run that the cluster, or this machine, cannot hold.

    The cluster had room for a run that resumes with the same pools, so it has lost a node. Whoever started
    the run again, a supervisor for example, has nothing to correct. So wait for the node, at most
    `run.node_wait_s`.

    Raises:
        ConfigError: The run is new, or its pools have other settings, or no node came.
    """
    if context.bundles is not None:  # Tune has reserved them
        return
    wait_s = config.run.node_wait_s if _had_room(config) else 0.0
    deadline, told = time.monotonic() + wait_s, False
    while True:
        nodes = planned_nodes()
        try:
            bundles_for(config, nodes)
            return
        except ConfigError as error:
            if time.monotonic() >= deadline:
                raise
            if not told:
                LOGGER.warning(
                    f"{str(error).splitlines()[0].rstrip(':')}. The run had room before, so a node is "
                    f"missing: waiting for it, at most {wait_s:g} s (run.node_wait_s)"
                )
                told = True
        time.sleep(_LOOK_EVERY_S)


def _had_room(config: RunConfig) -> bool:
    """Whether the run has trained with the same pools, on a cluster that others may repair."""
    in_cluster = ray.is_initialized() or bool(os.environ.get("RAY_ADDRESS"))
    if not in_cluster or saved_settings(config.folder) is None:
        return False
    changed = changed_settings(config.folder / "config.yaml", config)
    return not any(key.startswith(_POOLS) for key in changed)
