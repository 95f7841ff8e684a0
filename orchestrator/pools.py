"""The run's three pools in one placement group, and the weights' way from the learner to the engines."""

from typing import Any

import ray

from actors.learning import StepSums, TrainBatch, start_ranks
from actors.pool import Pool
from actors.rollout import EngineSettings, RolloutWorker
from actors.verification import VerificationWorker
from orchestrator.cluster import Placement, Resources, bundles_for
from orchestrator.config import RunConfig
from orchestrator.preparation import ModelTokens, absolute_path

START_TIMEOUT_S = 1800.0


class Pools:
    """The run's three pools in one placement group."""

    def __init__(self, config: RunConfig, tokens: ModelTokens, nodes: list[Resources]) -> None:
        self.config = config
        self.chunks: list[Any] = []
        self.version = -1
        self.placement = Placement(config, bundles_for(config, nodes))
        settings = engine_settings(config, tokens)
        self.rollouts = Pool(
            "rollout",
            lambda index: self.placement.engine(RolloutWorker, index, settings),
            config.rollout.num_engines,
            # Enough groups to keep vLLM's scheduler full; the rest wait here, where a new engine can take them.
            capacity=64,
            refresh=self._bring_up_to_date,
        )
        self.verifiers = Pool(
            "verification",
            lambda index: self.placement.verifier(VerificationWorker, index, config.verification.verifier, config.verification.timeout_s),
            config.verification.num_workers,
            capacity=2,
        )
        try:
            self.learners = start_ranks(config, absolute_path(config.model.path), tokens.z_token, self.placement.learner)
        except BaseException:
            self.stop()
            raise

    def learn(self, batch: TrainBatch) -> list[StepSums]:
        return ray.get([rank.step.remote(batch) for rank in self.learners])

    def publish(self, version: int) -> None:
        """Bring every engine to the learner's weights, as `version`."""
        rollout = self.config.rollout
        refs = [rank.publish.remote(self.config.engine_dtype, rollout.sync_chunk_mib * 2**20) for rank in self.learners]
        self.chunks, self.version = ray.get(refs)[0], version
        self.rollouts.broadcast("load_weights", version, self.chunks)

    def wait_ready(self) -> None:
        self.verifiers.wait_ready(START_TIMEOUT_S)
        self.rollouts.wait_ready(START_TIMEOUT_S)

    @property
    def restarts(self) -> int:
        return self.rollouts.restarts + self.verifiers.restarts

    def stop(self) -> None:
        """Give everything back: the placement group takes its actors with it."""
        self.placement.remove()

    def _bring_up_to_date(self, engine: Any) -> Any:
        return engine.load_weights.remote(self.version, self.chunks) if self.chunks else None


def engine_settings(config: RunConfig, tokens: ModelTokens) -> EngineSettings:
    rollout = config.rollout
    return EngineSettings(
        model_path=absolute_path(config.model.path),
        eos_tokens=tokens.eos_tokens,
        z_token=tokens.z_token,
        max_prompt_tokens=rollout.max_prompt_tokens,
        max_response_tokens=rollout.max_response_tokens,
        dtype=config.engine_dtype,
        tensor_parallel=rollout.tensor_parallel,
        threads=max(1, int(rollout.cpus)),
        kv_cache_gib=rollout.kv_cache_gib,
        on_gpu=rollout.gpus > 0,
        engine_args=rollout.engine_args,
    )
