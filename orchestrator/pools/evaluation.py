"""The pools of an evaluation: engines and verifiers in one placement group, without a learner."""

from actors.rollout import RolloutWorker
from orchestrator.cluster.bundles import Bundles
from orchestrator.cluster.placement import Placement
from orchestrator.config.evaluation import EvalConfig
from orchestrator.messages.requests import EngineSettings
from orchestrator.messages.verdicts import UNJUDGED
from orchestrator.pools.start import longest_check_s, rollout_pool, verification_pool, watch_of


class EvalPools:
    """Engines and verifiers.

    Args:
        config: For the sizes of the pools and the verifier.
        engine: The settings of every engine; None starts no engine, for samples that are stored already.
        bundles: The resources to reserve, from `bundles_without_learner`.

    Raises:
        ConfigError: The cluster has no room for the pools.
    """

    def __init__(
        self,
        config: EvalConfig,
        engine: EngineSettings | None,
        bundles: Bundles,
    ) -> None:
        self.placement = Placement(bundles)
        self.rollouts = rollout_pool(
            lambda index: self.placement.engine(RolloutWorker, index, engine),
            config.rollout.num_engines if engine is not None else 0,
            config.faults,
            watch_of(config.faults, config.folder),
        )
        self.verifiers = verification_pool(
            self.placement,
            config.verification,
            config.faults,
            watch_of(config.faults, config.folder, longest_check_s(config)),
            correct_above=config.correct_above,
            others=config.verifier_texts,
        )

    def wait_ready(self) -> None:
        """Block until every actor can work.

        Raises:
            PoolError: An actor could not be started.
        """
        self.verifiers.wait_ready()
        self.rollouts.wait_ready()

    @property
    def undecided(self) -> int:
        """Comparisons of answers that failed, counted by the workers that are alive."""
        found = self.verifiers.broadcast("pooling_stats")
        return sum(stats[status] for stats in found for status in UNJUDGED)

    def stop(self) -> None:
        """Remove the placement group, and with it all actors."""
        self.placement.remove()
