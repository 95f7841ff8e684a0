"""The learner ranks on the driver's side: their settings, their start, and calls of all ranks together."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.learning import LearnerRank
from orchestrator.algorithm.importance import ImportanceSettings
from orchestrator.algorithm.loss import LossSettings
from orchestrator.cluster.waits import FETCH_TIMEOUT_S
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import absolute_path
from orchestrator.messages.batches import LearnerSettings, PolicySettings
from orchestrator.pools.handles import RankHandle
from orchestrator.pools.hung import HungWorker, end_actors, end_hung, progress_of
from orchestrator.pools.memory_kill import name_actor
from orchestrator.pools.pool import CHECK_EVERY_S, POOL_START_TIMEOUT_S
from orchestrator.pools.watch import Watch, culprits
from orchestrator.pools.worker import cause_of_death
from orchestrator.terminal import LOGGER

RANK = "learner rank"
"""A rank's name in messages, before its number."""
TOLD = {"step", "stream", "publish", "reference_z_logprobs"}
"""Calls in which a rank tells of each micro-batch or chunk."""
PING_TIMEOUT_S = 5.0
"""How long a living rank may take to answer; a busy one takes longer and passes."""


def learner_settings(
    config: RunConfig,
    z_token: int | None,
    eos_tokens: tuple[int, ...] = (),
    chat_template: str | None = None,
) -> LearnerSettings:
    """A run's settings that its learner ranks use.

    Args:
        z_token: Id of z_c; None when self-rewarding is off.
        eos_tokens: What the exported model names as its EOS tokens; empty keeps those of the model.
        chat_template: That of the exported model; None keeps the model's own.
    """
    learning, loss = config.learning, config.loss
    return LearnerSettings(
        policy=PolicySettings(
            model_path=absolute_path(config.model.path),
            on_gpu=learning.gpus_per_rank > 0,
            threads=max(1, int(learning.cpus_per_rank)),
            dtype=learning.dtype,
            lr=learning.lr,
            betas=learning.betas,
            weight_decay=learning.weight_decay,
            grad_clip=learning.grad_clip,
            gradient_checkpointing=learning.gradient_checkpointing,
            offload=learning.offload,
            attention=learning.attention,
            shares_prefixes=learning.share_prefixes,
            deepspeed=learning.deepspeed,
            eos_tokens=eos_tokens,
            chat_template=chat_template,
        ),
        num_ranks=learning.num_ranks,
        seed=config.run.seed,
        warmup_steps=learning.warmup_steps,
        loss=LossSettings(
            alpha=loss.alpha,
            beta_v=loss.beta_v,
            kl_coef=loss.kl_coef,
            kl_estimator=loss.kl_estimator,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip,
            importance=ImportanceSettings(loss.importance_level, loss.importance_cap, loss.importance_bounds),
        ),
        z_token=z_token,
        needs_reference=config.needs_reference,
        run_name=config.run.name,
        remote=config.run.remote,
    )


def start_ranks(
    settings: LearnerSettings,
    spawn: Callable[..., RankHandle],
    timeout_s: float = POOL_START_TIMEOUT_S,
    worker: type = LearnerRank,
    note: Callable[[str], None] = LOGGER.warning,
    watch: Watch | None = None,
) -> list[RankHandle]:
    """Start all ranks and wait until they hold the model; once more if a rank dies or hangs meanwhile.

    Args:
        spawn: `spawn(cls, rank, *arguments)` starts an actor of the class and returns its handle.
        timeout_s: How long to wait for rank 0, and then for all of them.
        worker: The class of the actors.
        note: Called with a message when they start once more.
        watch: Says which ranks hang; one with the usual deadlines unless given.

    Raises:
        ray.exceptions.GetTimeoutError: They did not start within `timeout_s`.
        ray.exceptions.RayActorError: A rank died in both starts; the error is that of the first death.
    """
    try:
        return _start_once(settings, spawn, timeout_s, worker, watch)
    except RayActorError as first:
        cause = str(first) if isinstance(first, HungWorker) else cause_of_death(first)
        note(f"the ranks start once more: one died while they started: {cause}")
        try:
            return _start_once(settings, spawn, timeout_s, worker, watch)
        except RayActorError:
            raise first from None


def _start_once(
    settings: LearnerSettings,
    spawn: Callable[..., RankHandle],
    timeout_s: float,
    worker: type,
    watch: Watch | None,
) -> list[RankHandle]:
    """Start all ranks. If that fails, end them."""
    ranks = [spawn(worker, rank, settings, rank) for rank in range(settings.num_ranks)]
    try:
        opened = [ranks[0].open_store.remote()]
        ((address, port),) = _watched(RankCall(ranks[:1], "open_store", opened, watch or Watch()), timeout_s)
        loaded = [rank.setup.remote(address, port) for rank in ranks]
        _watched(RankCall(ranks, "setup", loaded, watch or Watch()), timeout_s)
    except BaseException:
        end_actors(ranks)
        raise
    return ranks


def _watched(call: "RankCall", timeout_s: float) -> list[Any]:
    """What a call has returned, by rank; ranks that hang in it are ended. Raises as `values_of`."""
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            return values_of(call.ranks, call.refs, max(0.0, min(CHECK_EVERY_S, left_s)))
        except GetTimeoutError:
            if left_s <= CHECK_EVERY_S:
                raise
            call.check_alive()


def call_ranks(
    ranks: Sequence[RankHandle], method: str, *arguments: Any, timeout_s: float = POOL_START_TIMEOUT_S
) -> list[Any]:
    """Call a collective of all ranks; returns what each returned, by rank. Raises as `values_of`."""
    return values_of(ranks, [getattr(rank, method).remote(*arguments) for rank in ranks], timeout_s)


class RankCall:
    """A call of a collective that `orchestrator.pools.events` waits for: it ends ranks that hang in it.

    Args:
        ranks: All of them.
        method: What was called, for the watch.
        refs: The calls, by rank.
        watch: Of the ranks, for all of their calls.
    """

    outstanding = True

    def __init__(
        self, ranks: Sequence[RankHandle], method: str, refs: Sequence[ObjectRef], watch: Watch
    ) -> None:
        self.ranks = ranks
        self.method = method
        self.refs = refs
        self.watch = watch
        self.started = time.monotonic()

    def measure(self) -> None:
        """The call has ended: what it took tells how long the next one may take.

        A long call in which ranks tell of each piece is measured by these.
        """
        seconds = time.monotonic() - self.started
        if self.method not in TOLD or seconds < CHECK_EVERY_S:
            self.watch.measure(self.method, seconds)

    def watched(self) -> list[ObjectRef]:
        """None: who made the call waits for it."""
        return []

    def settle(self, ref: ObjectRef) -> None:
        """Not called."""

    def check_alive(self) -> None:
        """End ranks that hang.

        Raises:
            HungWorker: There was one. The others cannot go on without it.
        """
        _, missing = ray.wait(list(self.refs), num_returns=len(self.refs), timeout=0)
        busy = {rank: (self.method, ref) for rank, ref in enumerate(self.refs) if ref in missing}
        hangs = self.watch.look(busy, progress_of({rank: self.ranks[rank] for rank in busy}))
        errors = [
            end_hung(f"{RANK} {hang.worker}", self.ranks[hang.worker], hang, self.watch.stacks)
            for hang in culprits(hangs)
        ]
        if errors:
            raise errors[0]


def values_of(
    ranks: Sequence[RankHandle], refs: Sequence[ObjectRef], timeout_s: float = FETCH_TIMEOUT_S
) -> list[Any]:
    """What the calls of a collective have returned, by rank.

    Raises:
        ray.exceptions.RayActorError: A rank died.
        ray.exceptions.RayTaskError: A rank failed, and all of them live.
        ray.exceptions.GetTimeoutError: They did not return within `timeout_s`.
    """
    try:
        return ray.get(list(refs), timeout=timeout_s)
    except RayTaskError as error:
        # A rank fails in a collective when its peer has died. Report the death: the run can recover from it.
        name_actor(error, ranks, RANK)
        check_alive(ranks)
        raise
    except RayError as error:
        name_actor(error, ranks, RANK)
        raise


def check_alive(ranks: Sequence[RankHandle]) -> None:
    """Check that no rank has died; a rank that is too busy to answer passes.

    Raises:
        ray.exceptions.RayActorError: A rank has died.
    """
    for rank in ranks:
        try:
            ray.get(rank.ping.remote(), timeout=PING_TIMEOUT_S)
        except GetTimeoutError:
            continue
        except RayError as error:
            name_actor(error, ranks, RANK)
            raise
