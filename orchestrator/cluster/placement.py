"""The placement group of a run: it reserves the bundles, and starts each actor in the bundle of its pool."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.cluster.bundles import Bundles, demand, have_room, listed
from orchestrator.cluster.nodes import Resources
from orchestrator.cluster.own_node import is_lost
from orchestrator.errors import ConfigError

FREE_TIMEOUT_S = 120
"""How long a run waits until other jobs release the resources that it needs."""

ENGINE_CALLS = 1000
"""Calls that an engine answers at a time: all its methods are coroutines."""


class Placement:
    """One placement group with the bundles of a run; its methods start an actor in the bundle of its pool.

    Args:
        bundles: The resources to reserve.
        in_trial: Whether the caller is a trial of a sweep. Ray Tune has then reserved the bundles already,
            and the run uses Tune's group: a second group would reserve everything twice.

    Raises:
        ConfigError: The cluster did not have the resources free within `FREE_TIMEOUT_S`.
    """

    def __init__(self, bundles: Bundles, in_trial: bool = False) -> None:
        self.bundles = bundles
        self.owned = not in_trial
        self.actors: list[Any] = []
        if in_trial:
            current = get_current_placement_group()
            assert current is not None, "Tune makes a trial's group before it starts the trial"
            self.group: PlacementGroup = current
            return
        self.group = placement_group(
            bundles.all, strategy="PACK", bundle_label_selector=label_selectors(bundles)
        )
        try:
            self._wait_for_room()
        except BaseException:
            remove_placement_group(self.group)
            raise

    def learner(self, cls: type, rank: int, *arguments: Any) -> Any:
        """Start learner rank number `rank`; returns its handle."""
        share = self.bundles.rank
        return self._spawn(cls, rank // self.bundles.ranks_per_learner, share, share["CPU"], 1, arguments)

    def engine(self, cls: type, index: int, *arguments: Any) -> Any:
        """Start engine number `index` on its own resources; returns its handle."""
        bundle, share = len(self.bundles.learners) + index, self.bundles.engine
        return self._spawn(cls, bundle, share, share["CPU"], ENGINE_CALLS, arguments)

    def colocated_engine(self, cls: type, first_rank: int, gpus: Sequence[int], *arguments: Any) -> Any:
        """Start an engine that takes turns with learner ranks, from `first_rank` on, on their `gpus`.

        It runs in their bundle and reserves nothing. Returns its handle.
        """
        bundle = first_rank // self.bundles.ranks_per_learner
        # Ray leaves CUDA_VISIBLE_DEVICES alone for an actor without GPUs, unless the node's environment says
        # otherwise.
        visible = {
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        }
        return self._spawn(cls, bundle, {}, self.bundles.engine["CPU"], ENGINE_CALLS, arguments, visible)

    def verifier(self, cls: type, index: int, calls: int, *arguments: Any) -> Any:
        """Start verifier number `index`, with `calls` answered at a time in threads; returns its handle."""
        bundle = len(self.bundles.learners) + len(self.bundles.engines) + index
        share = self.bundles.verifier
        return self._spawn(cls, bundle, share, share["CPU"], calls, arguments)

    def nodes(self) -> dict[str, str]:
        """The ids of the group's nodes, each with the names of the pools there: `learning, rollout`."""
        node_of_bundle = ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        bundles = self.bundles
        pools = ["learning"] * len(bundles.learners) + ["rollout"] * len(bundles.engines)
        pools += ["verification"] * len(bundles.verifiers)
        pools_of_node: dict[str, dict[str, None]] = {}
        for number, pool in enumerate(pools):
            pools_of_node.setdefault(node_of_bundle[number], {})[pool] = None
        return {node: ", ".join(names) for node, names in pools_of_node.items()}

    def remove(self) -> None:
        """End all actors: with the placement group, or one by one where the group is Tune's.

        Where this node is lost Ray ends them, and a call of it would take a minute to fail.
        """
        if is_lost():
            return
        if self.owned:
            remove_placement_group(self.group)
            return
        for actor in self.actors:
            ray.kill(actor)

    def _wait_for_room(self) -> None:
        deadline = time.monotonic() + FREE_TIMEOUT_S
        while not self.group.wait(timeout_seconds=1):  # a longer wait would delay the handling of signals
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"the cluster is busy: it could not reserve {demand(self.bundles)} within "
                    f"{FREE_TIMEOUT_S} s; free: {listed(ray.available_resources()) or 'nothing'}. "
                    "Stop other jobs, or try again later"
                )

    def _spawn(
        self,
        cls: type,
        bundle: int,
        share: Resources,
        cpus: float,
        concurrency: int,
        arguments: tuple,
        variables: dict[str, str] | None = None,
    ) -> Any:
        # More threads than CPUs are many times slower as soon as another process competes.
        threads = str(max(1, int(cpus)))
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }
        custom = {name: amount for name, amount in share.items() if name not in ("CPU", "GPU")}
        actor = (
            ray.remote(cls)
            .options(
                num_cpus=share.get("CPU", 0.0),
                num_gpus=share.get("GPU", 0.0),
                resources=custom,
                max_concurrency=concurrency,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self.group, placement_group_bundle_index=bundle
                ),
                runtime_env={"env_vars": environment | (variables or {})},
            )
            .remote(*arguments)
        )
        self.actors.append(actor)
        return actor


def label_selectors(bundles: Bundles) -> list[dict[str, str]]:
    """For each bundle, the nodes that it may go to, as Ray's label selector.

    Verifiers stay off nodes with GPUs when the other nodes have room for all of them. The selector names the
    nodes to avoid, so that a node which joins later can replace one that is lost.
    """
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    with_gpus = [node for node, resources in nodes.items() if resources.get("GPU")]
    others = [resources for node, resources in nodes.items() if node not in with_gpus]
    off_gpus = bool(with_gpus) and bool(bundles.total("GPU")) and have_room(others, bundles.verifiers)
    selector = {"ray.io/node-id": f"!in({','.join(with_gpus)})"} if off_gpus else {}
    return [{}] * (len(bundles.learners) + len(bundles.engines)) + [selector] * len(bundles.verifiers)
