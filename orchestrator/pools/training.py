"""The run's three pools in one placement group, and the weights' way from the learner to the engines."""

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.rollout import RolloutWorker
from actors.verification import VerificationWorker
from orchestrator.cluster.bundles import Bundles
from orchestrator.cluster.placement import Placement
from orchestrator.cluster.shared_storage import check_shared_folders
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import ModelTokens
from orchestrator.errors import PoolError
from orchestrator.messages.batches import StepSums, TrainBatch
from orchestrator.pools.pool import MAX_RESTARTS, Pool
from orchestrator.pools.ranks import call_ranks, check_alive, learner_settings, start_ranks
from orchestrator.pools.start import engine_settings

START_TIMEOUT_S = 1800.0


class Pools:
    """The run's three pools in one placement group, of their own or, `in_trial`, the one that Tune has made for the trial."""

    def __init__(
        self, config: RunConfig, tokens: ModelTokens, bundles: Bundles, in_trial: bool = False
    ) -> None:
        self.config, self.z_token = config, tokens.z_token
        self.chunks: list[Any] = []
        self.version = -1
        self.placement = Placement(config, bundles, in_trial)
        self.settings = engine_settings(config, tokens)
        self.colocated = config.rollout.colocate
        self.engines_turn = True
        """Whether the engines may generate; always, when they have GPUs of their own."""
        self.learner_restarts = 0
        try:
            check_shared_folders(
                config.folder, self.settings.model_path, self.placement.nodes(), config.run.remote
            )
            self.verifiers = self._start_verifiers()
            if self.colocated:
                self.learners = self._start_learners()
                self._release_learners()  # before an engine looks for free memory
                self.rollouts = self._start_engines()
            else:
                self.rollouts = self._start_engines()
                self.learners = self._start_learners()
        except BaseException:
            self.stop()
            raise

    def learn(self, batch: TrainBatch) -> list[StepSums]:
        """One update by all ranks.

        Raises:
            RayActorError: A rank died.
            ObjectLostError: Trajectories went down with their node; what the ranks hold is of no more use.
        """
        return self.on_all_ranks("step", batch)

    def restart_learners(self, error: RayError) -> None:
        """Replace all ranks after one has failed: they hold shards of one model, so the others are of no use without it.

        Raises:
            PoolError: They died more often than a pool may, or there is no room for them.
        """
        self.learner_restarts += 1
        if self.learner_restarts > MAX_RESTARTS:
            raise PoolError(
                f"learner ranks failed {self.learner_restarts} times; the last one said: {error}"
            ) from error
        for pool in (self.rollouts, self.verifiers):
            pool.abandon()
        self.chunks = []  # the weights are their maker's, who is gone
        for rank in self.learners:
            ray.kill(rank)
        if not self.colocated:
            self.learners = self._start_learners()
            return
        # Engines may have gone with their ranks, and if not, they hold the GPUs that the new ranks need.
        self.rollouts.stop()
        self.learners = self._start_learners()
        self._release_learners()
        restarts, self.rollouts = self.rollouts.restarts, self._start_engines()
        self.rollouts.restarts = restarts
        self.engines_turn = True

    def publish(self, version: int) -> None:
        """Bring every engine to the learner's weights, as `version`."""
        rollout = self.config.rollout
        refs = self.on_all_ranks("publish", self.config.engine_dtype, rollout.sync_chunk_mib * 2**20)
        self.chunks, self.version = refs[0], version
        if self.colocated:
            self.turn_to_engines()
        else:
            self.rollouts.broadcast("load_weights", version, self.chunks)

    def turn_to_engines(self) -> None:
        """Have the engines ready to generate with the newest weights."""
        if self.engines_turn:
            return
        self._release_learners()
        self.rollouts.broadcast("wake", self.version, self.chunks)
        self.engines_turn = True

    def on_all_ranks(self, method: str, *arguments: Any) -> list[Any]:
        """Call a collective of the ranks, whose turn it is then."""
        if self.engines_turn and self.colocated:
            self._send_engines_to_sleep()
            self._call_ranks("take_device")
            self.engines_turn = False
        return self._call_ranks(method, *arguments)

    def wait_ready(self) -> None:
        self.verifiers.wait_ready(START_TIMEOUT_S)
        self.rollouts.wait_ready(START_TIMEOUT_S)

    @property
    def published_bytes(self) -> int:
        """Size of the newest weights, all of which each engine reads."""
        return sum(
            place["object_size"] for place in ray.experimental.get_object_locations(self.chunks).values()
        )

    @property
    def restarts(self) -> int:
        return self.rollouts.restarts + self.verifiers.restarts + self.learner_restarts

    def stop(self) -> None:
        """Give everything back: the placement group takes its actors with it."""
        self.placement.remove()

    def _call_ranks(self, method: str, *arguments: Any) -> list[Any]:
        return call_ranks(self.learners, method, *arguments)

    def _send_engines_to_sleep(self) -> None:
        """Returns when none holds memory: one that has died meanwhile is up again, and asleep too."""
        replaced = -1
        while replaced != self.rollouts.restarts:
            replaced = self.rollouts.restarts
            self.rollouts.wait_ready(START_TIMEOUT_S)
            self.rollouts.broadcast("sleep")

    def _release_learners(self) -> None:
        self._call_ranks("release_device")

    def _start_verifiers(self) -> Pool:
        settings = self.config.verification
        return Pool(
            "verification",
            lambda index: self.placement.verifier(
                VerificationWorker, index, settings.verifier, settings.timeout_s
            ),
            settings.num_workers,
            capacity=2,
        )

    def _start_engines(self) -> Pool:
        return Pool(
            "rollout",
            self._start_engine,
            self.config.rollout.num_engines,
            # Enough groups to keep vLLM's scheduler full; the rest wait here, where a new engine can take them.
            capacity=64,
            refresh=self._bring_up_to_date,
        )

    def _start_engine(self, index: int) -> Any:
        if not self.colocated:
            return self.placement.engine(RolloutWorker, index, self.settings)
        width = self.config.rollout.tensor_parallel
        gpus = [
            gpu
            for rank in self.learners[index * width : (index + 1) * width]
            for gpu in ray.get(rank.gpu_ids.remote())
        ]
        return self.placement.colocated_engine(RolloutWorker, index, gpus, self.settings)

    def _start_learners(self) -> list[Any]:
        settings = learner_settings(self.config, self.z_token)
        try:
            return start_ranks(settings, self.placement.learner, START_TIMEOUT_S)
        except GetTimeoutError as error:
            raise PoolError(
                f"the learner ranks did not start within {START_TIMEOUT_S:g} s: is there a node with room for them?"
            ) from error

    def _bring_up_to_date(self, engine: Any) -> Any:
        if not self.chunks:
            return None
        # Chunks whose owner has died may be readable in part: every engine that loads them would die half-way.
        check_alive(self.learners[:1])
        return engine.load_weights.remote(self.version, self.chunks)
