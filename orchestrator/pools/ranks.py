"""The learner ranks on the driver's side: their settings, their start, and calls of all ranks together."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.learning import LearnerRank
from orchestrator.algorithm.importance import ImportanceSettings
from orchestrator.algorithm.loss import LossSettings
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import absolute_path
from orchestrator.messages.batches import LearnerSettings, PolicySettings
from orchestrator.pools.handles import RankHandle
from orchestrator.pools.memory_kill import name_actor

RANK = "learner rank"
"""A rank's name in messages, before its number."""
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
    timeout_s: float | None = None,
    worker: type = LearnerRank,
) -> list[RankHandle]:
    """Start all ranks and wait until they hold the model.

    Args:
        spawn: `spawn(cls, rank, *arguments)` starts an actor of the class and returns its handle.
        timeout_s: How long to wait for rank 0, and then for all of them; without a limit when None.
        worker: The class of the actors.

    Raises:
        ray.exceptions.GetTimeoutError: They did not start within `timeout_s`.
        ray.exceptions.RayActorError: A rank died while it started.
    """
    ranks = [spawn(worker, rank, settings, rank) for rank in range(settings.num_ranks)]
    address, port = ray.get(ranks[0].open_store.remote(), timeout=timeout_s)
    call_ranks(ranks, "setup", address, port, timeout_s=timeout_s)
    return ranks


def call_ranks(
    ranks: Sequence[RankHandle],
    method: str,
    *arguments: Any,
    timeout_s: float | None = None,
    meanwhile: Callable[[list[ObjectRef]], None] = lambda refs: None,
) -> list[Any]:
    """Call a collective of all ranks; returns what each returned, by rank.

    Args:
        meanwhile: Called with the refs of the calls; it may work until they are there.

    Raises:
        ray.exceptions.RayActorError: A rank died.
        ray.exceptions.RayTaskError: A rank failed, and all of them live.
        ray.exceptions.GetTimeoutError: They did not return within `timeout_s`.
    """
    refs = [getattr(rank, method).remote(*arguments) for rank in ranks]
    meanwhile(refs)
    return values_of(ranks, refs, timeout_s)


def values_of(
    ranks: Sequence[RankHandle], refs: Sequence[ObjectRef], timeout_s: float | None = None
) -> list[Any]:
    """What the calls of a collective return, by rank. Raises as `call_ranks`."""
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
