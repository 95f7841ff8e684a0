"""The run's three pools in one placement group, and the weights' way from the learner to the engines."""

import contextlib
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.learning import StepSums, TrainBatch, start_ranks
from actors.pool import MAX_RESTARTS, Pool
from actors.rollout import EngineSettings, RolloutWorker
from actors.verification import VerificationWorker
from orchestrator.cluster import Bundles, Placement
from orchestrator.config import RunConfig
from orchestrator.errors import PoolError
from orchestrator.preparation import ModelTokens, absolute_path

START_TIMEOUT_S = 1800.0
PING_TIMEOUT_S = 5.0


class Pools:
    """The run's three pools in one placement group, of their own or, `in_trial`, the one that Tune has made for the trial."""

    def __init__(self, config: RunConfig, tokens: ModelTokens, bundles: Bundles, in_trial: bool = False) -> None:
        self.config, self.z_token = config, tokens.z_token
        self.chunks: list[Any] = []
        self.version = -1
        self.placement = Placement(config, bundles, in_trial)
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
        self.learner_restarts = 0
        try:
            self.learners = self._start_learners()
        except BaseException:
            self.stop()
            raise

    def learn(self, batch: TrainBatch) -> list[StepSums]:
        """One update by all ranks.

        Raises:
            RayActorError: A rank died.
        """
        return self._on_all_ranks("step", batch)

    def restart_learners(self, error: RayActorError) -> None:
        """Replace all ranks after one has died: they hold shards of one model, so the others are of no use without it.

        Raises:
            PoolError: They died more often than a pool may.
        """
        self.learner_restarts += 1
        if self.learner_restarts > MAX_RESTARTS:
            raise PoolError(f"learner ranks died {self.learner_restarts} times; the last one said: {error}") from error
        for rank in self.learners:
            ray.kill(rank)
        self.learners = self._start_learners()

    def publish(self, version: int) -> None:
        """Bring every engine to the learner's weights, as `version`."""
        rollout = self.config.rollout
        refs = self._on_all_ranks("publish", self.config.engine_dtype, rollout.sync_chunk_mib * 2**20)
        self.chunks, self.version = refs[0], version
        self.rollouts.broadcast("load_weights", version, self.chunks)

    def wait_ready(self) -> None:
        self.verifiers.wait_ready(START_TIMEOUT_S)
        self.rollouts.wait_ready(START_TIMEOUT_S)

    @property
    def restarts(self) -> int:
        return self.rollouts.restarts + self.verifiers.restarts + self.learner_restarts

    def stop(self) -> None:
        """Give everything back: the placement group takes its actors with it."""
        self.placement.remove()

    def _on_all_ranks(self, method: str, *arguments: Any) -> list[Any]:
        try:
            return ray.get([getattr(rank, method).remote(*arguments) for rank in self.learners])
        except RayTaskError:
            # A rank fails in a collective when its peer has died: then the death is what is to be told.
            for rank in self.learners:
                with contextlib.suppress(GetTimeoutError):
                    ray.get(rank.ping.remote(), timeout=PING_TIMEOUT_S)
            raise

    def _start_learners(self) -> list[Any]:
        return start_ranks(self.config, absolute_path(self.config.model.path), self.z_token, self.placement.learner)

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
