"""Start the rollout pool and the verification pool, for training and evaluation alike.

In: settings and where to start actors. Out: `Pool`s. Both kinds of run so have the same limits.
"""

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from actors.budget import BudgetShare
from actors.checking import runs_many
from actors.child import CHILD_START_TIMEOUT_S
from actors.deadline import CALLS_ASIDE
from actors.verification import VerificationWorker
from orchestrator.cluster.placement import Placement
from orchestrator.config.engine import EngineConfig
from orchestrator.config.evaluation import EvalConfig
from orchestrator.config.faults import FaultsConfig
from orchestrator.config.training import RunConfig
from orchestrator.config.verification import VerificationConfig
from orchestrator.config.verifiers import parts_of, settings_of_text
from orchestrator.messages.requests import EngineSettings
from orchestrator.messages.verdicts import CORRECT_ABOVE
from orchestrator.pools.budgets import DeathBudget
from orchestrator.pools.handles import EngineHandle
from orchestrator.pools.pool import Pool
from orchestrator.pools.watch import Watch
from orchestrator.pools.worker import WorkerState

ENGINE_TASKS = 64
"""Groups that one engine works on at a time: enough to keep vLLM's scheduler full.

The other groups wait on the driver, so that an engine that starts later can take them.
"""

VERIFIER_TASKS = 2 + CALLS_ASIDE
"""Groups that one verifier holds at a time: it checks one, and does not have to wait for the next one.

The others wait for a slow check of theirs that goes on aside.
"""

GROUPS_PER_DEATH = 100
"""Groups that give a pool of an evaluation one death back."""

ANSWER_TIMEOUT_S = 5.0
"""How long an engine may take to say when it sampled first."""

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


def death_budget(who: str, faults: FaultsConfig, work_per_death: float, least: int = 0) -> DeathBudget:
    """The deaths that a run bears.

    Args:
        who: Whose.
        work_per_death: Amount of work that gives one of them back.
        least: Deaths that the run bears at least.
    """
    return DeathBudget(who, max(faults.max_deaths, least), work_per_death)


def watch_of(
    faults: FaultsConfig, folder: Path | None, longest_s: float = 0.0, together: bool = False
) -> Watch:
    """Says which workers of a pool hang.

    Args:
        folder: The run's, which keeps the stacks of those.
        longest_s: What a piece of work may take in any case.
        together: As of `Watch`.
    """
    stacks = None if folder is None else folder / "stacks"
    return Watch(max(faults.deadline_s, longest_s), faults.first_deadline_s, stacks, together)


def longest_check_s(config: RunConfig | EvalConfig) -> float:
    """What the longest check may take: the start of a child, and the verifiers' own deadlines twice."""
    settings = [part for text in config.verifier_texts for part in parts_of(settings_of_text(text))]
    timeouts = [part.timeout_s or config.verification.timeout_s for part in settings]
    return CHILD_START_TIMEOUT_S + 2 * max(timeouts)


def rollout_pool(
    spawn: Callable[[int], EngineHandle],
    num_engines: int,
    faults: FaultsConfig,
    watch: Watch,
    refresh: Callable[[EngineHandle], ObjectRef | None] = lambda engine: None,
    groups: int = GROUPS_PER_DEATH,
) -> Pool:
    """The pool of engines.

    Args:
        spawn: Starts the engine with this index.
        num_engines: May be 0.
        faults: The section `faults`.
        watch: Says which engines hang.
        refresh: Brings an engine that has just started to the newest weights, see `Pool`.
        groups: Groups that give a death back.
    """
    # When rank 0 dies in a weight sync, all engines that read its chunks end at once.
    budget = death_budget("workers of the rollout pool", faults, groups, 2 * num_engines)
    return Pool("rollout", spawn, num_engines, ENGINE_TASKS, refresh, budget, faults.max_attempts, watch)


def verification_pool(
    placement: Placement,
    settings: VerificationConfig,
    faults: FaultsConfig,
    watch: Watch,
    worker: type = VerificationWorker,
    correct_above: float = CORRECT_ABOVE,
    others: Sequence[str] = (),
    work: int = GROUPS_PER_DEATH,
) -> Pool:
    """The pool of verifiers, each in its own bundle.

    Args:
        placement: Starts the actors.
        settings: The section `verification`.
        faults: The section `faults`.
        watch: Says which workers hang.
        worker: The class that runs as an actor.
        correct_above: A reward above it is called correct.
        others: Canonical texts of the verifiers that sources name.
        work: Groups that give a death back.
    """
    texts = list(dict.fromkeys([*settings.verifier_texts, *others]))
    groups = CONCURRENT_GROUPS if any(map(runs_many, texts)) else VERIFIER_TASKS
    folder = Path(tempfile.gettempdir()) / f"laser-budget-{uuid.uuid4().hex}"

    def spawn(index: int) -> Any:
        # A replaced worker is in the same bundle, and so finds what the former one has spent.
        share = BudgetShare(folder, index, settings.num_workers)
        limits = correct_above, texts[1:], share, settings.memory_mib
        return placement.verifier(worker, index, groups, texts[0], settings.timeout_s, 20_000, *limits)

    budget = death_budget("workers of the verification pool", faults, work)
    size, attempts = settings.num_workers, faults.max_attempts
    return Pool("verification", spawn, size, groups, budget=budget, max_attempts=attempts, watch=watch)


def first_token_age(rollouts: Pool) -> float | None:
    """Seconds since an engine sampled its first token; None before, or where none answers."""
    ready = [worker for worker in rollouts.workers if worker.state is WorkerState.READY]
    ages = []
    for ref in [worker.actor.first_token_age.remote() for worker in ready]:
        with contextlib.suppress(RayError):  # who needs the engine will see its death
            ages.append(ray.get(ref, timeout=ANSWER_TIMEOUT_S))
    return max((age for age in ages if age is not None), default=None)
