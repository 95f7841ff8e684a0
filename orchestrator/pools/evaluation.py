"""The pools of an evaluation: engines and verifiers in one placement group, without a learner."""

from actors.rollout import RolloutWorker
from actors.verification import VerificationWorker
from orchestrator.cluster.bundles import Bundles
from orchestrator.cluster.placement import Placement
from orchestrator.config.evaluation import EvalConfig
from orchestrator.messages.requests import EngineSettings
from orchestrator.pools.pool import Pool

START_TIMEOUT_S = 1800.0


class EvalPools:
    """Engines and verifiers; no engine where `engine` is None."""

    def __init__(self, config: EvalConfig, engine: EngineSettings | None, bundles: Bundles) -> None:
        self.placement = Placement(config, bundles)
        verification = config.verification
        self.rollouts = Pool(
            "rollout",
            lambda index: self.placement.engine(RolloutWorker, index, engine),
            config.rollout.num_engines if engine is not None else 0,
            # Enough to keep vLLM's scheduler full; the rest wait here, where a new engine can take them.
            capacity=64,
        )
        self.verifiers = Pool(
            "verification",
            lambda index: self.placement.verifier(
                VerificationWorker, index, verification.verifier, verification.timeout_s
            ),
            verification.num_workers,
            capacity=2,
        )

    def wait_ready(self) -> None:
        self.verifiers.wait_ready(START_TIMEOUT_S)
        self.rollouts.wait_ready(START_TIMEOUT_S)

    @property
    def undecided(self) -> int:
        """Comparisons of answers that timed out or failed, by the workers that are alive."""
        return sum(stats["timeout"] + stats["error"] for stats in self.verifiers.broadcast("pooling_stats"))

    def stop(self) -> None:
        """Give everything back: the placement group takes its actors with it."""
        self.placement.remove()
