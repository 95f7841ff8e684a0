"""Where a run's actors live: connecting to Ray and the run's one placement group.

In: the sizes of the pools. Out: a `Placement` that starts actors in their bundles, or a `ConfigError` with what is needed and what
is there, before anything is started.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.config import EngineConfig, LearningConfig, RunConfig, VerificationConfig
from orchestrator.errors import ConfigError
from orchestrator.machine import usable_cpus

Resources = dict[str, float]

FREE_TIMEOUT_S = 120
"""How long a run waits for others to make room."""


class PoolsConfig(Protocol):
    """Settings of what a placement group is made for: a training run, or an evaluation, which has no learner."""

    @property
    def rollout(self) -> EngineConfig: ...

    @property
    def verification(self) -> VerificationConfig: ...


@dataclass(frozen=True)
class Bundles:
    """The run's demand: learner bundles first (one a node), then one an engine, then one a verifier."""

    learners: list[Resources]
    engines: list[Resources]
    """Empty when engines take turns with the learner: they live in its bundles."""
    verifiers: list[Resources]
    ranks_per_learner: int
    """Learner ranks in each learner bundle; the last one may hold fewer."""

    @property
    def all(self) -> list[Resources]:
        return self.learners + self.engines + self.verifiers

    @property
    def names(self) -> list[str]:
        """The resources that are asked for."""
        return list(dict.fromkeys(name for bundle in self.all for name in bundle))

    def total(self, resource: str) -> float:
        return sum(bundle.get(resource, 0.0) for bundle in self.all)


def bundles_for(config: RunConfig, nodes: list[Resources]) -> Bundles:
    """The bundles of a run on a cluster of `nodes`.

    Raises:
        ConfigError: The nodes together, or each alone, cannot hold them.
    """
    learning = config.learning
    rank = _resources(learning.cpus_per_rank, learning.gpus_per_rank, learning.resources)
    per_node = max((min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in rank.items()) for node in nodes), default=0)
    per_node = max(1, min(per_node, learning.num_ranks))
    learners = []
    for start in range(0, learning.num_ranks, per_node):
        count = min(per_node, learning.num_ranks - start)
        learners.append({name: amount * count for name, amount in rank.items()})
    engines = [] if config.rollout.colocate else _engines(config)
    bundles = Bundles(learners, engines, _verifiers(config), ranks_per_learner=per_node)
    if config.rollout.colocate and per_node < learning.num_ranks and per_node % config.rollout.tensor_parallel:
        raise ConfigError(
            f"rollout.colocate: a node holds {per_node} learner ranks, which rollout.tensor_parallel={config.rollout.tensor_parallel} does "
            "not divide: an engine would take turns with ranks of two nodes"
        )
    _refuse_what_cannot_fit(config, learning, bundles, nodes)
    return bundles


def bundles_without_learner(config: PoolsConfig, nodes: list[Resources], engines: bool = True) -> Bundles:
    """The bundles of an evaluation, which needs no engine when its samples are stored already. Raises ConfigError as `bundles_for`."""
    bundles = Bundles([], _engines(config) if engines else [], _verifiers(config), ranks_per_learner=0)
    _refuse_what_cannot_fit(config, None, bundles, nodes)
    return bundles


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
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


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
        self.group = placement_group(bundles.all, strategy="PACK", bundle_label_selector=label_selectors(bundles))
        try:
            self._wait_for_room()
        except BaseException:
            remove_placement_group(self.group)
            raise

    def learner(self, cls: type, rank: int, *arguments: Any) -> Any:
        assert isinstance(self.config, RunConfig), "an evaluation has no learner"
        settings = self.config.learning
        share = _resources(settings.cpus_per_rank, settings.gpus_per_rank, settings.resources)
        return self._spawn(cls, rank // self.bundles.ranks_per_learner, share, settings.cpus_per_rank, 1, arguments)

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
        return self._spawn(cls, bundle, _resources(settings.cpus, 0.0, settings.resources), settings.cpus, 2, arguments)

    def nodes(self) -> dict[str, str]:
        """Ids of the nodes that the group is on, each with the pools there, for messages: `learning, rollout`."""
        place = ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        learners, engines = len(self.bundles.learners), len(self.bundles.engines)
        pools = ["learning"] * learners + ["rollout"] * engines + ["verification"] * len(self.bundles.verifiers)
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
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        custom = {name: amount for name, amount in share.items() if name not in ("CPU", "GPU")}
        actor = (
            ray.remote(cls)
            .options(
                num_cpus=share.get("CPU", 0.0),
                num_gpus=share.get("GPU", 0.0),
                resources=custom,
                max_concurrency=concurrency,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle),
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


def _hold(nodes: list[Resources], bundles: list[Resources]) -> bool:
    """Whether nodes, as they are when nothing else runs, have room for like bundles."""
    room = sum(min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in bundles[0].items()) for node in nodes)
    return room >= len(bundles)


def _resources(cpus: float, gpus: float, custom: Mapping[str, float]) -> Resources:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) | dict(custom)


def _engines(config: PoolsConfig) -> list[Resources]:
    rollout = config.rollout
    return [_resources(rollout.cpus, rollout.gpus * rollout.tensor_parallel, rollout.resources)] * rollout.num_engines


def _verifiers(config: PoolsConfig) -> list[Resources]:
    return [_resources(config.verification.cpus, 0.0, config.verification.resources)] * config.verification.num_workers


def demand(bundles: Bundles) -> str:
    """For a message: `1 CPUs, 2 GPUs`."""
    return _listed({name: bundles.total(name) for name in bundles.names})


def _listed(resources: Mapping[str, float]) -> str:
    """CPUs, GPUs and custom resources, without what Ray counts for itself."""
    own = ("memory", "object_store_memory")
    shown = {
        name: amount for name, amount in resources.items() if name not in own and not name.startswith(("node:", "CPU_", "GPU_", "bundle_"))
    }
    return ", ".join(f"{amount:g} {_plural(name)}" for name, amount in shown.items() if "_group_" not in name)


def _plural(name: str) -> str:
    return f"{name}s" if name in ("CPU", "GPU") else f"of {name}"


def _refuse_what_cannot_fit(config: PoolsConfig, learning: LearningConfig | None, bundles: Bundles, nodes: list[Resources]) -> None:
    problems = []
    for name in bundles.names:
        there, needed = sum(node.get(name, 0.0) for node in nodes), bundles.total(name)
        if needed > there + 1e-9:
            problems.append(f"the pools need {needed:g} {_plural(name)}, but {there:g} are there")
    for bundle in bundles.all:
        if not problems and not any(all(node.get(name, 0.0) + 1e-9 >= amount for name, amount in bundle.items()) for node in nodes):
            problems.append(f"no node can hold {bundle} (an engine, a verifier or one learner rank must fit on one node)")
    if problems:
        rollout, verification = config.rollout, config.verification
        learners = ""
        if learning is not None:
            each_rank = f"learning.cpus_per_rank={learning.cpus_per_rank:g}, learning.gpus_per_rank={learning.gpus_per_rank:g}"
            each_rank += _custom("learning", learning.resources)
            learners = f"  learning      {learning.num_ranks} rank(s) x ({each_rank})\n"
        each_engine = f"rollout.cpus={rollout.cpus:g}, rollout.gpus={rollout.gpus:g} x rollout.tensor_parallel={rollout.tensor_parallel}"
        each_engine += _custom("rollout", rollout.resources)
        each_worker = f"verification.cpus={verification.cpus:g}" + _custom("verification", verification.resources)
        raise ConfigError(
            "; ".join(dict.fromkeys(problems)) + ":\n"
            f"{learners}"
            f"  rollout       {len(bundles.engines)} engine(s) x ({each_engine})\n"
            f"  verification  {verification.num_workers} worker(s) x ({each_worker})\n"
            "Lower these (fractions share a CPU), or use a larger cluster (RAY_ADDRESS; laser submit --address)."
        )


def _custom(section: str, resources: Mapping[str, float]) -> str:
    return f", {section}.resources={dict(resources)}" if resources else ""
