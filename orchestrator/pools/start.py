"""Start the rollout pool and the verification pool, for training and evaluation alike.

In: settings and where to start actors. Out: `Pool`s. Both kinds of run so have the same limits.
"""

import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import ObjectRef

from actors.budget import BudgetShare
from actors.checking import runs_many
from actors.verification import VerificationWorker
from orchestrator.cluster.placement import Placement
from orchestrator.config.engine import EngineConfig
from orchestrator.config.verification import VerificationConfig
from orchestrator.messages.requests import EngineSettings
from orchestrator.messages.verdicts import CORRECT_ABOVE
from orchestrator.pools.handles import EngineHandle
from orchestrator.pools.pool import MAX_RESTARTS, Pool

ENGINE_TASKS = 64
"""Groups that one engine works on at a time: enough to keep vLLM's scheduler full.

The other groups wait on the driver, so that an engine that starts later can take them.
"""

VERIFIER_TASKS = 2
"""Groups that one verifier holds at a time: it checks one, and does not have to wait for the next one."""


CONCURRENT_GROUPS = 16
"""The same where a verifier is `async`: it waits for a network, with many checks in flight."""


def engine_settings(
    engine: EngineConfig,
    *,
    model_path: str,
    dtype: str,
    eos_tokens: tuple[int, ...],
    z_token: int | None,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
    sleeps: bool = False,
) -> EngineSettings:
    """What an engine needs to know, from the `rollout` section and the model.

    Args:
        engine: The section `rollout` of a training run or an evaluation.
        model_path: A hub name, or a folder as an absolute path: engines run in folders of their own.
        dtype: The precision of the weights, never `auto`.
        eos_tokens: Ids of the tokens that end a response.
        z_token: The id of z_c; None when no score is read.
        max_prompt_tokens: In place of the section's.
        max_response_tokens: In place of the section's.
        sleeps: Whether the engine shares its GPUs with learner ranks and gives them back by `sleep`.
    """
    return EngineSettings(
        model_path=model_path,
        eos_tokens=eos_tokens,
        z_token=z_token,
        max_prompt_tokens=max_prompt_tokens or engine.max_prompt_tokens,
        max_response_tokens=max_response_tokens or engine.max_response_tokens,
        dtype=dtype,
        tensor_parallel=engine.tensor_parallel,
        threads=max(1, int(engine.cpus)),
        kv_cache_gib=engine.kv_cache_gib,
        on_gpu=engine.gpus > 0,
        sleeps=sleeps,
        engine_args=engine.engine_args,
    )


def rollout_pool(
    spawn: Callable[[int], EngineHandle],
    num_engines: int,
    refresh: Callable[[EngineHandle], ObjectRef | None] = lambda engine: None,
) -> Pool:
    """The pool of engines.

    Args:
        spawn: Starts the engine with this index.
        num_engines: May be 0.
        refresh: Brings an engine that has just started to the newest weights, see `Pool`.
    """
    # When rank 0 dies in a weight sync, all engines that read its chunks end at once.
    max_restarts = max(MAX_RESTARTS, 2 * num_engines)
    return Pool("rollout", spawn, num_engines, ENGINE_TASKS, refresh, max_restarts)


def verification_pool(
    placement: Placement,
    settings: VerificationConfig,
    worker: type = VerificationWorker,
    correct_above: float = CORRECT_ABOVE,
    others: Sequence[str] = (),
) -> Pool:
    """The pool of verifiers, each in its own bundle.

    Args:
        placement: Starts the actors.
        settings: The section `verification`.
        worker: The class that runs as an actor.
        correct_above: A reward above it is called correct.
        others: Canonical texts of the verifiers that sources name.
    """
    texts = list(dict.fromkeys([*settings.verifier_texts, *others]))
    groups = CONCURRENT_GROUPS if any(map(runs_many, texts)) else VERIFIER_TASKS
    folder = Path(tempfile.gettempdir()) / f"laser-budget-{uuid.uuid4().hex}"

    def spawn(index: int) -> Any:
        # A replaced worker is in the same bundle, and so finds what the former one has spent.
        share = BudgetShare(folder, index, settings.num_workers)
        limits = correct_above, texts[1:], share, settings.memory_mib
        return placement.verifier(worker, index, groups, texts[0], settings.timeout_s, 20_000, *limits)

    return Pool("verification", spawn, settings.num_workers, groups)
