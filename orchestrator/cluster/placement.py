"""Where a run's actors live: connecting to Ray and the run's one placement group.

In: the sizes of the pools. Out: a `Placement` that starts actors in their bundles, or a `ConfigError` with what is needed and what
is there, before anything is started.
"""

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

from orchestrator.cluster.bundles import Bundles, PoolsConfig, _hold, _listed, _resources, demand
from orchestrator.cluster.nodes import Resources
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError

FREE_TIMEOUT_S = 120
"""How long a run waits for others to make room."""


class Placement:
    """The run's one placement group; its methods start an actor in the bundle of its pool.

    In a trial of a sweep the run uses the group that is around it: a second one would reserve everything twice.
    """

    def __init__(self, config: PoolsConfig, bundles: Bundles, in_trial: bool = False) -> None:
        self.config, self.bundles, self.owned = config, bundles, not in_trial
        self.actors: list[Any] = []
        if in_trial:
            around = get_current_placement_group()
            assert around is not None, "Tune makes a trial's group before it starts the trial"
            self.group: PlacementGroup = around
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
        assert isinstance(self.config, RunConfig), "an evaluation has no learner"
        settings = self.config.learning
        share = _resources(settings.cpus_per_rank, settings.gpus_per_rank, settings.resources)
        return self._spawn(
            cls, rank // self.bundles.ranks_per_learner, share, settings.cpus_per_rank, 1, arguments
        )

    def engine(self, cls: type, index: int, *arguments: Any) -> Any:
        settings = self.config.rollout
        share = _resources(settings.cpus, settings.gpus * settings.tensor_parallel, settings.resources)
        return self._spawn(cls, len(self.bundles.learners) + index, share, settings.cpus, 1000, arguments)

    def colocated_engine(self, cls: type, index: int, gpus: Sequence[int], *arguments: Any) -> Any:
        """An engine in the bundle of the learner ranks that it takes turns with, on their `gpus`; it reserves nothing of its own."""
        settings = self.config.rollout
        bundle = index * settings.tensor_parallel // self.bundles.ranks_per_learner
        # Ray shows an actor only GPUs that it reserves, unless it is told otherwise.
        shown = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
        return self._spawn(cls, bundle, {}, settings.cpus, 1000, arguments, shown)

    def verifier(self, cls: type, index: int, *arguments: Any) -> Any:
        settings = self.config.verification
        bundle = len(self.bundles.learners) + len(self.bundles.engines) + index
        return self._spawn(
            cls, bundle, _resources(settings.cpus, 0.0, settings.resources), settings.cpus, 2, arguments
        )

    def nodes(self) -> dict[str, str]:
        """Ids of the nodes that the group is on, each with the pools there, for messages: `learning, rollout`."""
        place = ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        learners, engines = len(self.bundles.learners), len(self.bundles.engines)
        pools = (
            ["learning"] * learners + ["rollout"] * engines + ["verification"] * len(self.bundles.verifiers)
        )
        on_node: dict[str, dict[str, None]] = {}
        for number, pool in enumerate(pools):
            on_node.setdefault(place[number], {})[pool] = None
        return {node: ", ".join(names) for node, names in on_node.items()}

    def remove(self) -> None:
        """Give everything back: a group of our own takes its actors with it, in another's only the actors are ours."""
        if self.owned:
            remove_placement_group(self.group)
            return
        for actor in self.actors:
            ray.kill(actor)

    def _wait_for_room(self) -> None:
        deadline = time.monotonic() + FREE_TIMEOUT_S
        while not self.group.wait(timeout_seconds=1):  # no longer at once: meanwhile no signal is heard
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"the cluster is busy: it could not place {demand(self.bundles)} within {FREE_TIMEOUT_S} s; free are "
                    f"{_listed(ray.available_resources()) or 'none'}. Stop other jobs, or try again later"
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
        # More threads than the share are many times slower as soon as another process competes.
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
    """Which nodes each bundle may go to: verifiers leave nodes with GPUs to those who need them, where the others hold all of them.

    Named are the nodes that are out of the question, so that one that joins later may take a lost node's place.
    """
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    with_gpus = [node for node, resources in nodes.items() if resources.get("GPU")]
    others = [resources for node, resources in nodes.items() if node not in with_gpus]
    off_gpus = bool(with_gpus) and bool(bundles.total("GPU")) and _hold(others, bundles.verifiers)
    selector = {"ray.io/node-id": f"!in({','.join(with_gpus)})"} if off_gpus else {}
    return [{}] * (len(bundles.learners) + len(bundles.engines)) + [selector] * len(bundles.verifiers)
