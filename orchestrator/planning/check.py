"""`laser check`: explains a configuration without starting Ray or an engine.

In: a configuration. Out: a `Report` of its tokens, batches, schedule, memory and placement, with warnings,
printed by `show`. A model or data that is absent here, or a run too large for this machine, becomes a note;
only `strict` refuses.
"""

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from actors.checking import refuse_unusable
from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.algorithm.micro_batches import plan_micro_batches, split_mini_batches
from orchestrator.algorithm.schedule import Schedule
from orchestrator.cluster.bundles import bundles_for
from orchestrator.cluster.machine import GIB, main_memory
from orchestrator.cluster.nodes import local_nodes
from orchestrator.config.loss import LossConfig
from orchestrator.config.training import RunConfig
from orchestrator.data.eos import turn_end_warning
from orchestrator.data.files import is_local_data
from orchestrator.data.model_files import WEIGHTS
from orchestrator.data.problems import ProblemSource
from orchestrator.data.tokens import looks_local, tokens_of
from orchestrator.errors import ConfigError, LaserError
from orchestrator.planning.fit import gpu_memory, memory_notes
from orchestrator.planning.hub import hub_answers, local_cache_only
from orchestrator.planning.report import BatchPlan, Inputs, PoolShare, Report, TrainingPhase
from orchestrator.planning.show import show
from orchestrator.planning.sizing import Sizing, size_pools
from orchestrator.planning.staleness import explain_staleness
from orchestrator.pools.memory import MemoryPlan, ModelSize, model_size, plan_memory
from orchestrator.terminal import SafeConsole
from orchestrator.training.preparation import prepare


def check(
    config: RunConfig, strict: bool = False, console: Console | None = None, measured: Path | None = None
) -> Report:
    """Explain `config` on the console.

    Args:
        strict: Refuse what could not be checked or does not fit on this machine.
        measured: A run's folder; its measured times predict how the pools should be sized.

    Raises:
        ConfigError, DataError: A run would refuse `config`; `strict` refuses it; `measured` holds no run,
            or too short a one.
    """
    console = console or SafeConsole(highlight=False)
    sizing = None if measured is None else size_pools(config, measured)
    with console.status("reading the model's files and the problems"):
        report = build_report(config, sizing)
    show(report, console)
    if strict and report.notes:
        raise ConfigError("--strict refuses what these notes say:\n  " + "\n  ".join(report.notes))
    return report


def build_report(config: RunConfig, sizing: Sizing | None = None) -> Report:
    """Everything that can be said about `config` without starting it.

    Where the hub does not answer, its models and data sets are read from the local cache.

    Raises:
        ConfigError, DataError: A run would refuse these settings, the model's files or the data.
    """
    offline = _names_the_hub(config) and not hub_answers()
    with local_cache_only() if offline else nullcontext():
        inputs = read_inputs(config)
        size = None if inputs.tokens is None else model_size(config.model.path)
    refuse_unusable(config.verifier_texts)
    batch = plan_batch(config)
    phases, warnings = plan_schedule(config)
    c_ref: list[str] = []
    if config.self_reward.token is not None:
        c_ref, c_ref_warnings = explain_c_ref(config.loss)
        warnings += c_ref_warnings
    staleness, staleness_warnings = explain_staleness(config)
    warnings += staleness_warnings
    if sizing is not None:
        warnings += sizing.warnings

    notes = [f"not checked, {reason}" for reason in inputs.absent.values()]
    if inputs.tokens is not None and (
        warning := turn_end_warning(inputs.tokens.chat, inputs.tokens.eos_tokens)
    ):
        warnings.append(warning)
    memory, room = None, main_memory()
    if inputs.tokens is not None and size is not None:
        memory = plan_memory(config, size)
        warnings += model_warnings(config, size, memory)
        notes += memory_notes(config, size, memory, room, gpu_memory())
        notes += _weight_notes(config.model.path)
    machine = local_nodes()
    try:
        bundles_for(config, machine)
    except ConfigError as error:
        notes.append(f"on this machine {str(error).splitlines()[0].rstrip(':')}")
    return Report(
        config=config,
        inputs=inputs,
        batch=batch,
        phases=tuple(phases),
        c_ref=tuple(c_ref),
        staleness=tuple(staleness),
        size=size,
        memory=memory,
        placement=tuple(plan_placement(config)),
        machine=machine[0],
        machine_memory=room,
        sizing=sizing,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def read_inputs(config: RunConfig) -> Inputs:
    """Load and check, as a run does, what is present of the model and data.

    Raises:
        ConfigError, DataError: Something is present that a run would refuse.
    """
    try:
        prepared = prepare(config)
        return Inputs(prepared.tokens, prepared, {})
    except LaserError:
        absent = _absent_inputs(config)
        if not absent:
            raise
    if "model.path" in absent:
        return Inputs(None, None, absent)
    if "data.train" in absent:
        return Inputs(tokens_of(config), None, absent)
    prepared = prepare(config.model_copy(update={"data": config.data.model_copy(update={"eval": None})}))
    return Inputs(prepared.tokens, prepared, absent)


def plan_batch(config: RunConfig) -> BatchPlan:
    """How one step is divided into mini-batches, ranks and micro-batches when all samples are longest."""
    rollout, learning = config.rollout, config.learning
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    mini_batches = split_mini_batches(
        [rollout.samples_per_prompt] * rollout.prompts_per_step, learning.mini_batches
    )
    largest = max(len(samples) for samples in mini_batches)
    plan = plan_micro_batches([longest] * largest, learning.num_ranks, learning.tokens_per_micro_batch)
    return BatchPlan(
        prompts=rollout.prompts_per_step,
        samples=config.samples_per_step,
        longest_sample=longest,
        tokens=config.samples_per_step * longest,
        mini_batches=learning.mini_batches,
        samples_per_mini_batch=largest,
        micro_batches=len(plan[0]),
        samples_per_micro_batch=max(len(micro) for rank in plan for micro in rank),
    )


def plan_schedule(config: RunConfig) -> tuple[list[TrainingPhase], list[str]]:
    """The run's phases, and a warning for each loss term that is switched on but starts after the last step.

    Both are empty for a run without steps, which only measures the initial model.
    """
    loss, steps = config.loss, config.run.steps
    if steps == 0:
        return [], []
    if config.self_reward.token is None:
        return [TrainingPhase(1, steps, "GRPO; self-rewarding is off (self_reward.token is null)")], []
    schedule = Schedule(loss.reasoning_warmup_steps, loss.self_reward_warmup_steps)
    warm_up = loss.reasoning_warmup_steps
    mix_after = loss.reasoning_warmup_steps + loss.self_reward_warmup_steps

    def terms(step: int) -> str:
        names = ["GRPO"]
        if schedule.loss_term_active(step) and loss.alpha > 0:
            names.append("self-reward loss")
        if schedule.advantage_mix_active(step) and loss.tau > 0:
            names.append("advantage mix")
        return " + ".join(names)

    starts = sorted({start for start in (1, warm_up + 1, mix_after + 1) if start <= steps})
    phases: list[TrainingPhase] = []
    for first, last in zip(starts, [*(start - 1 for start in starts[1:]), steps], strict=True):
        if phases and phases[-1].terms == terms(first):
            phases[-1] = TrainingPhase(phases[-1].first, last, terms(first))
        else:
            phases.append(TrainingPhase(first, last, terms(first)))

    warnings = []
    if loss.alpha > 0 and warm_up >= steps:
        warnings.append(
            f"the self-reward loss never starts: its first step is {warm_up + 1}, and run.steps is {steps}; "
            "raise run.steps, or lower loss.reasoning_warmup_steps"
        )
    if loss.tau > 0 and mix_after >= steps:
        warnings.append(
            f"the advantage mix never starts: its first step is {mix_after + 1}, and run.steps is {steps}; "
            "raise run.steps, lower loss.self_reward_warmup_steps, or set loss.tau to 0"
        )
    return phases, warnings


def explain_c_ref(loss: LossConfig) -> tuple[list[str], list[str]]:
    """What the run does with `loss.c_ref`, in lines of text, and warnings about its value."""
    beta_v = loss.beta_v
    refused = f"{-1 / beta_v:.4g} (-1 / beta_v)"
    if not isinstance(loss.c_ref, str):
        verdict = check_c_ref(loss.c_ref, beta_v)
        target = loss.c_ref + 1 / beta_v
        return [
            f"given: {loss.c_ref:g}",
            f"log pi(z_c) is trained to {loss.c_ref:.4g} after a wrong solution and {target:.4g} after a "
            "correct one",
            f"a solution counts as called correct above {loss.c_ref + 0.5 / beta_v:.4g} (score 0.5)",
            f"pi_ref(z_c) * exp(1 / beta_v) = {math.exp(target):.2g}, which must be far below 1",
        ], [f"loss.c_ref: {message}" for message in verdict.messages]
    if loss.c_ref == "exact":
        return [
            "exact: a reference model computes log pi_ref(z_c) for each sample (see its memory below)",
            f"their mean is measured before the first step, and the run is refused if it is {refused} or "
            "more; "
            "evaluation and service score with this mean",
        ], []
    warned = min(-1 / beta_v + math.log(0.05), -1.3 / beta_v)
    return [
        "calibrate: measured on the initial model's own solutions before the first step",
        f"the run is refused if c_ref is {refused} or more, and warned about above {warned:.4g}",
        f"log pi(z_c) is trained to c_ref after a wrong solution and to c_ref + {1 / beta_v:.4g} after a "
        "correct one",
    ], []


def model_warnings(config: RunConfig, size: ModelSize, memory: MemoryPlan) -> list[str]:
    """Warnings about settings that do not suit the model's shape."""
    rollout = config.rollout
    warnings = []
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens + 1
    if size.context is not None and longest > size.context:
        warnings.append(
            f"rollout.max_prompt_tokens + rollout.max_response_tokens + 1 = {longest} is more than the "
            "model's "
            f"{size.context} positions: vLLM refuses to start unless the model's rope scaling covers them; "
            "lower the two keys"
        )
    engine = memory.engine
    if engine.kv_tokens is not None and engine.kv_tokens < longest:
        needed = math.ceil(100 * longest * engine.kv_bytes_per_token / GIB) / 100
        warnings.append(
            f"an engine's KV cache holds {engine.kv_tokens} tokens, and the longest sample has {longest}: "
            f"vLLM refuses to start; set rollout.kv_cache_gib to at least {needed:g}"
        )
    return warnings


def plan_placement(config: RunConfig) -> list[PoolShare]:
    """The actors of each pool, and the devices that each actor reserves."""
    learning, rollout, verification = config.learning, config.rollout, config.verification
    if rollout.colocate:
        engines = PoolShare("rollout, in the learner's turns", rollout.num_engines, 0.0, 0.0)
    else:
        gpus = rollout.gpus * rollout.tensor_parallel
        engines = PoolShare("rollout", rollout.num_engines, rollout.cpus, gpus)
    return [
        PoolShare("learning", learning.num_ranks, learning.cpus_per_rank, learning.gpus_per_rank),
        engines,
        PoolShare("verification", verification.num_workers, verification.cpus, 0.0),
    ]


def _names_the_hub(config: RunConfig) -> bool:
    paths = [source.path for source in (*config.data.train, *(config.data.eval or ()))]
    return not (looks_local(config.model.path) and all(map(is_local_data, paths)))


def _absent_inputs(config: RunConfig) -> dict[str, str]:
    """For each key whose model or data is absent, the reason.

    Raises:
        ConfigError, DataError: A model or data file is present and wrong.
    """
    data, model = config.data, config.model.path
    absent = {}

    def attempt(key: str, path: str, local: bool, load: Callable[..., object], *arguments: object) -> None:
        try:
            load(*arguments)
        except LaserError as error:
            # The library that downloads from the hub raises OSError where it cannot. Other errors are about
            # the content.
            if os.path.exists(path) or not (local or isinstance(error.__cause__, OSError)):
                raise
            absent[key] = str(error) if str(error).startswith(key) else f"{key}: {error}"

    local_model = looks_local(model)
    config_file = os.path.join(model, "config.json") if local_model else model
    attempt("model.path", config_file, local_model, tokens_of, config)
    for key, sources in (
        ("data.train", data.train_sources(config.verification)),
        ("data.eval", data.eval_sources(config.verification)),
    ):
        for source in sources:
            attempt(key, source.path, is_local_data(source.path), ProblemSource, source, key)
    return absent


def _weight_notes(model_path: str) -> list[str]:
    folder = Path(model_path)
    if not looks_local(model_path) or any(folder.glob(WEIGHTS)):
        return []
    return [f"model.path: {model_path} holds no weights ({WEIGHTS})"]
