"""`laser check`: explains a configuration without running it, and starts neither Ray nor an engine.

In: a configuration. Out: a `Report` of what its tokens, batches, schedule, memory and placement will be, with warnings; `show` prints
it. What is absent here (a model or data still to be fetched) or too large for this machine is noted, not refused, unless `strict`.
"""

import math
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from actors.verification import load_verifier
from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.algorithm.micro_batches import plan_micro_batches, split_mini_batches
from orchestrator.algorithm.schedule import Schedule
from orchestrator.cluster.bundles import bundles_for
from orchestrator.cluster.nodes import local_nodes
from orchestrator.config.training import LossConfig, RunConfig
from orchestrator.data.problems import load_problems
from orchestrator.data.tokens import ModelTokens, load_tokens, looks_local
from orchestrator.errors import ConfigError, LaserError
from orchestrator.planning.memory import (
    GIB,
    MemoryPlan,
    ModelSize,
    gpu_memory,
    machine_memory,
    memory_notes,
    model_size,
    plan_memory,
)
from orchestrator.planning.report import WEIGHT_FILES, BatchPlan, Inputs, Phase, Report
from orchestrator.planning.show import show
from orchestrator.planning.sizing import Sizing, size
from orchestrator.training.preparation import prepare


def check(
    config: RunConfig, strict: bool = False, console: Console | None = None, measured: Path | None = None
) -> Report:
    """Explain `config` on the console; from the run in the folder `measured` also how its pools should be sized.

    Raises:
        ConfigError, DataError: The run would be refused; with `strict` also when something could not be checked or does not fit here.
            `measured` holds no run, or too short a one.
    """
    console = console or Console(highlight=False)
    sizing = None if measured is None else size(config, measured)
    with console.status("reading the model's files and the problems"):
        report = examine(config, sizing)
    show(report, console)
    if strict and report.notes:
        raise ConfigError("--strict refuses what the notes above say:\n  " + "\n  ".join(report.notes))
    return report


def examine(config: RunConfig, sizing: Sizing | None = None) -> Report:
    """Work out the report. Raises ConfigError and DataError for settings, model files or data that a run would refuse."""
    if not (looks_local(config.model.path) and _is_file_name(config.data.train)):
        _skip_unreachable_hub()
    inputs = read_inputs(config)
    load_verifier(config.verification.verifier)
    batch = plan_batch(config)
    phases, warnings = plan_schedule(config)
    c_ref, c_ref_warnings = explain_c_ref(config.loss) if config.self_reward.token is not None else ([], [])
    warnings += c_ref_warnings
    warnings += [] if sizing is None else sizing.warnings

    notes = [f"not checked, {reason}" for reason in inputs.absent.values()]
    shape = memory = None
    if inputs.tokens is not None:
        shape = model_size(config.model.path)
        memory = plan_memory(config, shape)
        warnings += check_model(config, inputs.tokens, shape, memory)
        notes += memory_notes(config, memory, machine_memory(), gpu_memory())
        if looks_local(config.model.path) and not any(
            any(Path(config.model.path).glob(pattern)) for pattern in WEIGHT_FILES
        ):
            notes.append(f"model.path: {config.model.path} holds no weights ({' or '.join(WEIGHT_FILES)})")
    machine = local_nodes()
    try:
        bundles_for(config, machine)
    except ConfigError as error:
        notes.append(f"on this machine {str(error).splitlines()[0].rstrip(':')}")
    return Report(
        config,
        inputs,
        batch,
        tuple(phases),
        tuple(c_ref),
        shape,
        memory,
        machine[0],
        sizing,
        tuple(warnings),
        tuple(notes),
    )


def read_inputs(config: RunConfig) -> Inputs:
    """Load and check, as a run does, what is here of its model and data.

    Raises:
        ConfigError, DataError: Something is here and a run would refuse it.
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
        return Inputs(load_tokens(config.model.path, config.self_reward.token), None, absent)
    prepared = prepare(config.model_copy(update={"data": config.data.model_copy(update={"eval": None})}))
    return Inputs(prepared.tokens, prepared, absent)


def _absent_inputs(config: RunConfig) -> dict[str, str]:
    """Why a key's model or data is not here, for those that are not; raises the error of one that is here and wrong."""
    data, model = config.data, config.model.path
    local_model = looks_local(model)
    absent = {}

    def attempt(
        key: str, path: str, local: bool, load: Callable[..., object], *arguments: str | None
    ) -> None:
        try:
            load(*arguments)
        except LaserError as error:
            # Of a hub name that cannot be had, the library that fetches it says so; whatever else is wrong, our own checks say.
            if os.path.exists(path) or not (local or isinstance(error.__cause__, OSError)):
                raise
            absent[key] = str(error) if str(error).startswith(key) else f"{key}: {error}"

    config_file = os.path.join(model, "config.json") if local_model else model
    attempt("model.path", config_file, local_model, load_tokens, model, config.self_reward.token)
    attempt(
        "data.train",
        data.train,
        _is_file_name(data.train),
        load_problems,
        data.train,
        data.problem_field,
        data.answer_field,
    )
    if data.eval is not None:
        attempt(
            "data.eval",
            data.eval,
            _is_file_name(data.eval),
            load_problems,
            data.eval,
            *data.eval_fields,
            "test",
        )
    return absent


def _is_file_name(path: str) -> bool:
    return os.path.exists(path) or path.endswith((".jsonl", ".json", ".parquet"))


def _skip_unreachable_hub() -> None:
    """Look for hub names in the local cache only where there is no network, instead of retrying each for half a minute."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        pass
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def plan_batch(config: RunConfig) -> BatchPlan:
    """How one step's samples are dealt to mini-batches, ranks and micro-batches when each has the greatest length."""
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


def plan_schedule(config: RunConfig) -> tuple[list[Phase], list[str]]:
    """The run's phases, and a warning for each that its settings ask for and its steps never reach.

    Both are empty for a run without steps, which only measures the initial model.
    """
    loss, steps = config.loss, config.run.steps
    if steps == 0:
        return [], []
    if config.self_reward.token is None:
        return [Phase(1, steps, "GRPO; self-rewarding is off (self_reward.token is null)")], []
    schedule = Schedule(loss.reasoning_warmup_steps, loss.self_reward_warmup_steps)
    warm_up, mix_after = (
        loss.reasoning_warmup_steps,
        loss.reasoning_warmup_steps + loss.self_reward_warmup_steps,
    )

    def terms(step: int) -> str:
        names = ["GRPO"]
        if schedule.loss_term_active(step) and loss.alpha > 0:
            names.append("self-reward loss")
        if schedule.advantage_mix_active(step) and loss.tau > 0:
            names.append("advantage mix")
        return " + ".join(names)

    starts = sorted({start for start in (1, warm_up + 1, mix_after + 1) if start <= steps})
    phases: list[Phase] = []
    for first, last in zip(starts, [*(start - 1 for start in starts[1:]), steps], strict=True):
        if phases and phases[-1].terms == terms(first):
            phases[-1] = Phase(phases[-1].first, last, terms(first))
        else:
            phases.append(Phase(first, last, terms(first)))

    warnings = []
    if loss.alpha > 0 and warm_up >= steps:
        warnings.append(
            f"the self-reward loss never starts: it joins at step {warm_up + 1}, and run.steps is {steps}; "
            "raise run.steps, or lower loss.reasoning_warmup_steps"
        )
    if loss.tau > 0 and mix_after >= steps:
        warnings.append(
            f"the advantage mix never starts: it joins at step {mix_after + 1}, and run.steps is {steps}; "
            "raise run.steps, lower loss.self_reward_warmup_steps, or set loss.tau to 0"
        )
    return phases, warnings


def explain_c_ref(loss: LossConfig) -> tuple[list[str], list[str]]:
    """What becomes of the method's assumption about c_ref, in words, and warnings."""
    beta_v = loss.beta_v
    if not isinstance(loss.c_ref, str):
        verdict = check_c_ref(loss.c_ref, beta_v)
        target = loss.c_ref + 1 / beta_v
        targets = f"log pi(z_c) is trained to {loss.c_ref:.4g} after a wrong solution and {target:.4g} after a correct one"
        threshold = f"a solution counts as called correct above {loss.c_ref + 0.5 / beta_v:.4g} (score 0.5)"
        leak = f"pi_ref(z_c) * exp(1 / beta_v) = {math.exp(target):.2g}, which must be far below 1"
        return [f"given: {loss.c_ref:g}", targets, threshold, leak], [
            f"loss.c_ref: {message}" for message in verdict.messages
        ]
    if loss.c_ref == "exact":
        return [
            "exact: a reference model computes log pi_ref(z_c) for each sample (its memory is in the plan below)",
            f"their mean is measured before the first step, and the run refused if it is {-1 / beta_v:.4g} (-1 / beta_v) or more; "
            "evaluation and service score with it",
        ], []
    warned = min(-1 / beta_v + math.log(0.05), -1.3 / beta_v)
    return [
        "calibrate: measured on the initial model's own solutions before the first step",
        f"the run is refused then if c_ref is {-1 / beta_v:.4g} (-1 / beta_v) or more, and warned about above {warned:.4g}",
        f"log pi(z_c) is trained to c_ref after a wrong solution and to c_ref + {1 / beta_v:.4g} after a correct one",
    ], []


def check_model(config: RunConfig, tokens: ModelTokens, size: ModelSize, memory: MemoryPlan) -> list[str]:
    """Warnings about a model and the settings that must agree with its shape.

    Raises:
        ConfigError: z_c has no embedding, or the engine cannot be split over its ranks.
    """
    rollout = config.rollout
    if tokens.z_token is not None and tokens.z_token >= size.vocabulary:
        raise ConfigError(
            f"self_reward.token: {config.self_reward.token!r} has id {tokens.z_token}, but the model's embedding ends at "
            f"{size.vocabulary - 1}; choose another token, or add rows to the embedding"
        )
    if size.attention_heads % rollout.tensor_parallel:
        raise ConfigError(
            f"rollout.tensor_parallel={rollout.tensor_parallel} does not divide the model's {size.attention_heads} attention heads, "
            "so vLLM cannot split them"
        )
    warnings = []
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens + 1
    if size.context is not None and longest > size.context:
        warnings.append(
            f"rollout.max_prompt_tokens + rollout.max_response_tokens + 1 = {longest} is more than the model's {size.context} positions: "
            "vLLM refuses that unless the model's rope scaling reaches so far"
        )
    if memory.kv_tokens is not None and memory.kv_tokens < longest:
        warnings.append(
            f"an engine's KV cache holds {memory.kv_tokens} tokens, and the longest sample has {longest}: vLLM refuses to start; "
            f"set rollout.kv_cache_gib to at least {math.ceil(100 * longest * memory.kv_bytes_per_token / GIB) / 100:g}"
        )
    return warnings
