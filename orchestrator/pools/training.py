"""The three pools of a training run in one placement group; publishes the learner's weights to engines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError

from actors.learning import LearnerRank
from actors.rollout import RolloutWorker
from actors.verification import VerificationWorker
from orchestrator.cluster.bundles import Bundles
from orchestrator.cluster.placement import Placement
from orchestrator.cluster.shared_storage import check_shared_folders
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import ModelTokens, absolute_path
from orchestrator.errors import PoolError
from orchestrator.messages.batches import StepSums, TrainBatch
from orchestrator.pools.events import run_while
from orchestrator.pools.handles import EngineHandle, RankHandle
from orchestrator.pools.hung import end_actors
from orchestrator.pools.pool import POOL_START_TIMEOUT_S, Pool
from orchestrator.pools.ranks import RankCall, check_alive, learner_settings, start_ranks, values_of
from orchestrator.pools.start import (
    death_budget,
    engine_settings,
    first_token_age,
    longest_check_s,
    rollout_pool,
    verification_pool,
    watch_of,
)
from orchestrator.pools.task import Observer, ignore
from orchestrator.terminal import LOGGER


@dataclass(frozen=True)
class WorkerClasses:
    """The classes that run as actors. A test without GPUs, or a simulation of many nodes, gives others."""

    engine: type = RolloutWorker
    verifier: type = VerificationWorker
    rank: type = LearnerRank


class Pools:
    """The pools of one run: engines, verifiers and learner ranks.

    With `rollout.colocate` engines and ranks take turns on the same GPUs: while one side works, the other has
    released its memory. Without it both hold their own GPUs all the time.

    Args:
        config: The run's settings.
        tokens: The model's EOS tokens and z_c.
        bundles: The resources to reserve, from `bundles_for`.
        in_trial: Whether Ray Tune has reserved them for the trial that this run is.
        workers: The classes that run as actors.

    Raises:
        ConfigError: The cluster has no room, or its nodes do not share the run's folder or the model.
        PoolError: The learner ranks did not start.
        ray.exceptions.RayError: An actor failed while it started.
    """

    def __init__(
        self,
        config: RunConfig,
        tokens: ModelTokens,
        bundles: Bundles,
        in_trial: bool = False,
        workers: WorkerClasses = WorkerClasses(),
    ) -> None:
        self.config = config
        self.z_token = tokens.z_token
        self.exported_eos = tokens.eos_tokens if config.model.eos_tokens else ()
        self.chat_template = tokens.settings.template
        self.workers = workers
        self.settings = engine_settings(
            config.rollout,
            model_path=absolute_path(config.model.path),
            dtype=config.engine_dtype,
            eos_tokens=tokens.eos_tokens,
            z_token=tokens.z_token,
            sleeps=config.rollout.colocate,
        )
        self.chunks: list[ObjectRef] = []
        """The newest weights; rank 0 owns these objects, and they are lost when it dies."""
        self.version = -1
        """The version of these weights; -1 before the first `publish`."""
        self.published_bytes = 0
        """Size of the newest weights; each engine reads all of them."""
        self.colocated = config.rollout.colocate
        self.engines_turn = True
        """Whether the engines may generate; always true without `colocate`."""
        self.learner_restarts = 0
        self.learner_budget = death_budget("learner ranks", config.faults, work_per_death=1)
        self.rank_watch = watch_of(config.faults, config.folder, together=True)
        self.note: Callable[[str], None] = LOGGER.warning
        """Called with a message when an engine or verifier is replaced."""
        self.observer: Observer = ignore
        self.rollouts: Pool
        self.verifiers: Pool
        self.learners: list[RankHandle]
        self.placement = Placement(bundles, in_trial)
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise

    def observe(self, observer: Observer) -> None:
        """Have engines and verifiers tell `observer` of each value that they return."""
        self.observer = self.rollouts.observer = self.verifiers.observer = observer

    def tell(self, note: Callable[[str], None]) -> None:
        """Have `note` called with a message when an engine or a verifier is replaced."""
        self.note = self.rollouts.note = self.verifiers.note = note

    def wait_ready(self) -> None:
        """Block until all engines and verifiers can work.

        Raises:
            PoolError: An actor could not be started.
            ray.exceptions.RayActorError, ray.exceptions.ObjectLostError: Rank 0 died with the weights that an
                engine needs.
        """
        self.verifiers.wait_ready()
        self.rollouts.wait_ready()

    def learn(self, batch: TrainBatch) -> list[StepSums]:
        """One policy update by all ranks; returns the sums of each.

        Raises:
            ray.exceptions.RayActorError: A rank died.
            ray.exceptions.ObjectLostError: Trajectories were lost with their node. The ranks must be
                restarted.
        """
        sums = self.on_all_ranks("step", batch)
        self.learner_budget.work()
        return sums

    def publish(self, version: int) -> None:
        """Bring every engine to the learner's weights, as `version`."""
        chunk_bytes = self.config.rollout.sync_chunk_mib * 2**20
        published = self.on_all_ranks("publish", self.config.engine_dtype, chunk_bytes)[0]  # of rank 0
        self.chunks, self.published_bytes, self.version = published.chunks, published.size, version
        if self.colocated:
            self.turn_to_engines()
        else:
            self.rollouts.broadcast("load_weights", version, self.chunks)

    def turn_to_engines(self) -> None:
        """Let the engines generate with the newest weights. Does nothing when it is their turn already."""
        if self.engines_turn:
            return
        self._release_learners()
        self.rollouts.broadcast("wake", self.version, self.chunks)
        self.engines_turn = True

    def on_all_ranks(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on every rank and return each rank's value; with `colocate` the turn goes to the
        ranks. Engines and verifiers work on their tasks in the meantime.

        Raises:
            PoolError: Engines or verifiers died too often.
            ray.exceptions.RayActorError: A rank died.
            ray.exceptions.RayTaskError: The method failed on a rank.
        """
        if self.engines_turn and self.colocated:
            _send_to_sleep(self.rollouts)
            self._call_ranks("take_device")
            self.engines_turn = False
        return self._call_ranks(method, *arguments)

    def wait_for_ranks(self, method: str, refs: list[ObjectRef]) -> list[Any]:
        """Wait for a call of all ranks that has been made. Returns and raises as `on_all_ranks`."""
        others = () if self.colocated else (self.rollouts, self.verifiers)
        run_while(refs, call := RankCall(self.learners, method, refs, self.rank_watch), *others)
        call.measure()
        return values_of(self.learners, refs)

    def restart_learners(self, error: RayError) -> None:
        """Replace all ranks after one has failed: each holds a part of one model, and is of no use without
        the others.

        Args:
            error: The failure, for the message.

        Raises:
            PoolError: The ranks have failed too often, or the cluster has no room for new ones.
        """
        self.learner_restarts += 1
        self.learner_budget.spend(error)
        self.abandon_tasks()
        self.chunks = []  # rank 0 owned these objects; they are lost with it
        end_actors(self.learners)
        if not self.colocated:
            self.learners = self._start_learners()
            return
        # The engines hold the GPUs that the new ranks need, unless they died with the old ranks.
        self.rollouts.stop()
        self.learners = self._start_learners()
        self._release_learners()
        before, self.rollouts = self.rollouts, self._start_engines()
        self.rollouts.restarts, self.rollouts.budget = before.restarts, before.budget
        self.engines_turn = True

    def abandon_tasks(self) -> None:
        """Drop what engines and verifiers have to do."""
        for pool in (self.rollouts, self.verifiers):
            pool.abandon()

    @property
    def restarts(self) -> int:
        """Engines, verifiers and sets of learner ranks that were replaced."""
        return self.rollouts.restarts + self.verifiers.restarts + self.learner_restarts

    def first_token_age(self) -> float | None:
        """Seconds since an engine sampled its first token; None before, or where none answers."""
        return first_token_age(self.rollouts)

    def stop(self) -> None:
        """End all actors and release their resources."""
        self.placement.remove()

    def _start_all(self) -> None:
        check_shared_folders(
            self.config.folder, self.settings.model_path, self.placement.nodes(), self.config.run.remote
        )
        self.verifiers = verification_pool(
            self.placement,
            self.config.verification,
            self.config.faults,
            watch_of(self.config.faults, self.config.folder, longest_check_s(self.config)),
            self.workers.verifier,
            self.config.loss.correct_above,
            self.config.verifier_texts,
            self.config.rollout.prompts_per_step,
        )
        if self.colocated:
            self.learners = self._start_learners()
            self._release_learners()  # before an engine measures the free memory
            self.rollouts = self._start_engines()
        else:
            self.rollouts = self._start_engines()
            self.learners = self._start_learners()

    def _start_learners(self) -> list[RankHandle]:
        settings = learner_settings(self.config, self.z_token, self.exported_eos, self.chat_template)
        spawn, worker = self.placement.learner, self.workers.rank
        try:
            return start_ranks(settings, spawn, POOL_START_TIMEOUT_S, worker, self.note, self.rank_watch)
        except GetTimeoutError as error:
            raise PoolError(
                f"the learner ranks did not start in {POOL_START_TIMEOUT_S:g} s: has a node room for them?"
            ) from error

    def _start_engines(self) -> Pool:
        rollout, faults = self.config.rollout, self.config.faults
        refresh, groups = self._bring_up_to_date, rollout.prompts_per_step
        watch = watch_of(faults, self.config.folder)
        pool = rollout_pool(self._start_engine, rollout.num_engines, faults, watch, refresh, groups)
        pool.observer, pool.note = self.observer, self.note
        return pool

    def _start_engine(self, index: int) -> EngineHandle:
        if not self.colocated:
            return self.placement.engine(self.workers.engine, index, self.settings)
        width = self.config.rollout.tensor_parallel
        first = index * width
        ranks = self.learners[first : first + width]
        refs = [rank.gpu_ids.remote() for rank in ranks]
        gpus = [gpu for of_rank in values_of(ranks, refs) for gpu in of_rank]
        return self.placement.colocated_engine(self.workers.engine, first, gpus, self.settings)

    def _bring_up_to_date(self, engine: EngineHandle) -> ObjectRef | None:
        """The pool's `refresh`: load the newest weights into an engine that has just started."""
        if not self.chunks:
            return None
        # When the owner of the chunks has died, some of them may still be readable. Every engine that starts
        # to load them would then fail half-way and end.
        check_alive(self.learners[:1])
        return engine.load_weights.remote(self.version, self.chunks)

    def _call_ranks(self, method: str, *arguments: Any) -> list[Any]:
        refs = [getattr(rank, method).remote(*arguments) for rank in self.learners]
        return self.wait_for_ranks(method, refs)

    def _release_learners(self) -> None:
        self._call_ranks("release_device")


def _send_to_sleep(rollouts: Pool) -> None:
    """Make all engines release their memory. An engine that dies in the call is replaced, and its
    replacement must be asked as well."""
    asked_after = -1
    while asked_after != rollouts.restarts:
        asked_after = rollouts.restarts
        rollouts.wait_ready()
        rollouts.broadcast("sleep")
