"""The resources that a run needs, as bundles of a placement group, and the refusal of what cannot fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from orchestrator.cluster.nodes import Resources
from orchestrator.config.training import EngineConfig, LearningConfig, RunConfig, VerificationConfig
from orchestrator.errors import ConfigError


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
    per_node = max(
        (min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in rank.items()) for node in nodes),
        default=0,
    )
    per_node = max(1, min(per_node, learning.num_ranks))
    learners = []
    for start in range(0, learning.num_ranks, per_node):
        count = min(per_node, learning.num_ranks - start)
        learners.append({name: amount * count for name, amount in rank.items()})
    engines = [] if config.rollout.colocate else _engines(config)
    bundles = Bundles(learners, engines, _verifiers(config), ranks_per_learner=per_node)
    if (
        config.rollout.colocate
        and per_node < learning.num_ranks
        and per_node % config.rollout.tensor_parallel
    ):
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


def _hold(nodes: list[Resources], bundles: list[Resources]) -> bool:
    """Whether nodes, as they are when nothing else runs, have room for like bundles."""
    room = sum(
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in bundles[0].items()) for node in nodes
    )
    return room >= len(bundles)


def _resources(cpus: float, gpus: float, custom: Mapping[str, float]) -> Resources:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) | dict(custom)


def _engines(config: PoolsConfig) -> list[Resources]:
    rollout = config.rollout
    return [
        _resources(rollout.cpus, rollout.gpus * rollout.tensor_parallel, rollout.resources)
    ] * rollout.num_engines


def _verifiers(config: PoolsConfig) -> list[Resources]:
    return [
        _resources(config.verification.cpus, 0.0, config.verification.resources)
    ] * config.verification.num_workers


def demand(bundles: Bundles) -> str:
    """For a message: `1 CPUs, 2 GPUs`."""
    return _listed({name: bundles.total(name) for name in bundles.names})


def _listed(resources: Mapping[str, float]) -> str:
    """CPUs, GPUs and custom resources, without what Ray counts for itself."""
    own = ("memory", "object_store_memory")
    shown = {
        name: amount
        for name, amount in resources.items()
        if name not in own and not name.startswith(("node:", "CPU_", "GPU_", "bundle_"))
    }
    return ", ".join(f"{amount:g} {_plural(name)}" for name, amount in shown.items() if "_group_" not in name)


def _plural(name: str) -> str:
    return f"{name}s" if name in ("CPU", "GPU") else f"of {name}"


def _refuse_what_cannot_fit(
    config: PoolsConfig, learning: LearningConfig | None, bundles: Bundles, nodes: list[Resources]
) -> None:
    problems = []
    for name in bundles.names:
        there, needed = sum(node.get(name, 0.0) for node in nodes), bundles.total(name)
        if needed > there + 1e-9:
            problems.append(f"the pools need {needed:g} {_plural(name)}, but {there:g} are there")
    for bundle in bundles.all:
        if not problems and not any(
            all(node.get(name, 0.0) + 1e-9 >= amount for name, amount in bundle.items()) for node in nodes
        ):
            problems.append(
                f"no node can hold {bundle} (an engine, a verifier or one learner rank must fit on one node)"
            )
    if problems:
        rollout, verification = config.rollout, config.verification
        learners = ""
        if learning is not None:
            each_rank = f"learning.cpus_per_rank={learning.cpus_per_rank:g}, learning.gpus_per_rank={learning.gpus_per_rank:g}"
            each_rank += _custom("learning", learning.resources)
            learners = f"  learning      {learning.num_ranks} rank(s) x ({each_rank})\n"
        each_engine = f"rollout.cpus={rollout.cpus:g}, rollout.gpus={rollout.gpus:g} x rollout.tensor_parallel={rollout.tensor_parallel}"
        each_engine += _custom("rollout", rollout.resources)
        each_worker = f"verification.cpus={verification.cpus:g}" + _custom(
            "verification", verification.resources
        )
        raise ConfigError(
            "; ".join(dict.fromkeys(problems)) + ":\n"
            f"{learners}"
            f"  rollout       {len(bundles.engines)} engine(s) x ({each_engine})\n"
            f"  verification  {verification.num_workers} worker(s) x ({each_worker})\n"
            "Lower these (fractions share a CPU), or use a larger cluster (RAY_ADDRESS; laser submit --address)."
        )


def _custom(section: str, resources: Mapping[str, float]) -> str:
    return f", {section}.resources={dict(resources)}" if resources else ""
