"""The resources that a run needs, as bundles of a placement group; refuses a run that cannot fit."""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.cluster.nodes import Resources
from orchestrator.config.engine import EngineConfig
from orchestrator.config.learning import LearningConfig
from orchestrator.config.training import RunConfig, VerificationConfig
from orchestrator.errors import ConfigError

_ROUNDING = 1e-9
"""Fractions of a CPU may add up to a little more than the whole."""


@dataclass(frozen=True)
class Bundles:
    """What a run reserves: learner bundles first (one a node), then one an engine, then one a verifier."""

    learners: list[Resources]
    engines: list[Resources]
    """Empty when engines take turns with the learner: they then run in its bundles."""
    verifiers: list[Resources]
    ranks_per_learner: int
    """Learner ranks in each learner bundle; the last bundle may hold fewer."""
    rank: Resources
    """What one learner rank reserves; empty without a learner."""
    engine: Resources
    """What one engine reserves, all its tensor-parallel ranks together. An engine that takes turns with
    learner ranks reserves nothing, and runs on as many of their CPUs."""
    verifier: Resources
    """What one verifier reserves."""

    @property
    def all(self) -> list[Resources]:
        return self.learners + self.engines + self.verifiers

    @property
    def names(self) -> list[str]:
        """The resources that the bundles hold."""
        return list(dict.fromkeys(name for bundle in self.all for name in bundle))

    def total(self, resource: str) -> float:
        return sum(bundle.get(resource, 0.0) for bundle in self.all)


def bundles_for(config: RunConfig, nodes: list[Resources]) -> Bundles:
    """The bundles of a training run on a cluster of `nodes`.

    Raises:
        ConfigError: The nodes together have too little, or no node can hold one of the actors.
    """
    learning, rollout = config.learning, config.rollout
    rank = _share(learning.cpus_per_rank, learning.gpus_per_rank, learning.resources)
    per_node = max((_copies(rank, node) for node in nodes), default=0)
    per_node = max(1, min(per_node, learning.num_ranks))
    if rollout.colocate and per_node < learning.num_ranks and per_node % rollout.tensor_parallel:
        raise ConfigError(
            f"rollout.colocate: a node holds {per_node} learner ranks, and "
            f"rollout.tensor_parallel={rollout.tensor_parallel} does not divide {per_node}: an engine would "
            "take turns with ranks of two nodes"
        )
    learners = []
    for start in range(0, learning.num_ranks, per_node):
        count = min(per_node, learning.num_ranks - start)
        learners.append({name: amount * count for name, amount in rank.items()})
    engine, verifier = _engine_share(rollout), _verifier_share(config.verification)
    bundles = Bundles(
        learners=learners,
        engines=[] if rollout.colocate else [engine] * rollout.num_engines,
        verifiers=[verifier] * config.verification.num_workers,
        ranks_per_learner=per_node,
        rank=rank,
        engine=engine,
        verifier=verifier,
    )
    keys = [
        _learning_keys(learning),
        _rollout_keys(rollout, len(bundles.engines)),
        _verification_keys(config.verification),
    ]
    _refuse_what_cannot_fit(bundles, nodes, keys)
    return bundles


def bundles_without_learner(
    rollout: EngineConfig | None, verification: VerificationConfig, nodes: list[Resources]
) -> Bundles:
    """The bundles of an evaluation. `rollout` is None when it needs no engine, because its samples are
    stored.

    Raises:
        ConfigError: As `bundles_for`.
    """
    engine = {} if rollout is None else _engine_share(rollout)
    verifier = _verifier_share(verification)
    bundles = Bundles(
        learners=[],
        engines=[] if rollout is None else [engine] * rollout.num_engines,
        verifiers=[verifier] * verification.num_workers,
        ranks_per_learner=0,
        rank={},
        engine=engine,
        verifier=verifier,
    )
    keys = [] if rollout is None else [_rollout_keys(rollout, rollout.num_engines)]
    _refuse_what_cannot_fit(bundles, nodes, [*keys, _verification_keys(verification)])
    return bundles


def have_room(nodes: list[Resources], bundles: list[Resources]) -> bool:
    """Whether the nodes can hold all of these equal bundles while nothing else runs there."""
    return sum(_copies(bundles[0], node) for node in nodes) >= len(bundles)


def demand(bundles: Bundles) -> str:
    """All that the bundles hold, for a message: `1 CPU, 2 GPUs`."""
    return listed({name: bundles.total(name) for name in bundles.names})


def listed(resources: Mapping[str, float]) -> str:
    """CPUs, GPUs and custom resources for a message, without the resources that Ray counts for itself."""
    internal = ("memory", "object_store_memory")
    prefixes = ("node:", "CPU_", "GPU_", "bundle_")
    return ", ".join(
        _amount(name, amount)
        for name, amount in resources.items()
        if name not in internal and not name.startswith(prefixes) and "_group_" not in name
    )


def _amount(name: str, amount: float) -> str:
    """`1 CPU`, `0.5 CPUs`, `2 units of the resource rollout`."""
    plural = "" if amount == 1 else "s"
    return (
        f"{amount:g} {name}{plural}"
        if name in ("CPU", "GPU")
        else f"{amount:g} unit{plural} of the resource {name}"
    )


def _copies(share: Resources, node: Resources) -> int:
    """How many times a node holds a share."""
    return min(int(node.get(name, 0.0) / amount + _ROUNDING) for name, amount in share.items())


def _share(cpus: float, gpus: float, custom: Mapping[str, float]) -> Resources:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) | dict(custom)


def _engine_share(rollout: EngineConfig) -> Resources:
    return _share(rollout.cpus, rollout.gpus * rollout.tensor_parallel, rollout.resources)


def _verifier_share(verification: VerificationConfig) -> Resources:
    return _share(verification.cpus, 0.0, verification.resources)


def _refuse_what_cannot_fit(bundles: Bundles, nodes: list[Resources], keys: list[str]) -> None:
    """`keys` are lines for the message: the settings to lower.

    Raises:
        ConfigError: The bundles do not fit.
    """
    problems = []
    for name in bundles.names:
        available, needed = sum(node.get(name, 0.0) for node in nodes), bundles.total(name)
        if needed > available + _ROUNDING:
            problems.append(f"the pools need {_amount(name, needed)}, but the cluster has {available:g}")
    if not problems:
        problems = [
            f"no node can hold {listed(bundle)} (each engine, verifier and learner rank must fit on one node)"
            for bundle in bundles.all
            if not any(_copies(bundle, node) for node in nodes)
        ]
    if problems:
        raise ConfigError(
            "; ".join(dict.fromkeys(problems))
            + ":\n"
            + "".join(f"  {line}\n" for line in keys)
            + "Lower these settings (fractions share a CPU), or use a larger cluster "
            "(RAY_ADDRESS; laser submit --address)."
        )


def _learning_keys(learning: LearningConfig) -> str:
    cpus, gpus = f"learning.cpus_per_rank={learning.cpus_per_rank:g}", f"{learning.gpus_per_rank:g}"
    share = f"{cpus}, learning.gpus_per_rank={gpus}{_custom('learning', learning.resources)}"
    return f"learning      {learning.num_ranks} rank(s) x ({share})"


def _rollout_keys(rollout: EngineConfig, num_engines: int) -> str:
    gpus = f"rollout.gpus={rollout.gpus:g} x rollout.tensor_parallel={rollout.tensor_parallel}"
    share = f"rollout.cpus={rollout.cpus:g}, {gpus}{_custom('rollout', rollout.resources)}"
    return f"rollout       {num_engines} engine(s) x ({share})"


def _verification_keys(verification: VerificationConfig) -> str:
    share = f"verification.cpus={verification.cpus:g}{_custom('verification', verification.resources)}"
    return f"verification  {verification.num_workers} worker(s) x ({share})"


def _custom(section: str, resources: Mapping[str, float]) -> str:
    return f", {section}.resources={dict(resources)}" if resources else ""
