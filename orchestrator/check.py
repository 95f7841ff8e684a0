"""`laser check`: explains a configuration without running it, and starts neither Ray nor an engine.

In: a configuration. Out: a `Report` of what its tokens, batches, schedule, memory and placement will be, with warnings; `show` prints
it. What is absent here (a model or data still to be fetched) or too large for this machine is noted, not refused, unless `strict`.
"""

import math
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from actors.verification import load_verifier
from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.algorithm.micro_batches import plan_micro_batches, split_mini_batches
from orchestrator.algorithm.schedule import Schedule
from orchestrator.cluster import Resources, bundles_for, local_nodes
from orchestrator.config import LossConfig, RunConfig
from orchestrator.errors import ConfigError, LaserError
from orchestrator.memory_plan import GIB, MemoryPlan, ModelSize, gpu_memory, machine_memory, memory_notes, model_size, plan_memory
from orchestrator.preparation import ModelTokens, Prepared, load_tokens, looks_local, prepare
from orchestrator.prompts import load_problems, render_prompt
from orchestrator.sizing import Sizing, size

WEIGHT_FILES = ("*.safetensors", "*.bin")
SHORT_PROMPT_TOKENS = 40
SHOWN_PROMPT_CHARACTERS = 1200
NO_STEPS = "no training step (run.steps is 0): the run only measures the initial model"


@dataclass(frozen=True)
class Inputs:
    """What of a run's model and data is here. `absent` says for each key what is not."""

    tokens: ModelTokens | None
    prepared: Prepared | None
    absent: dict[str, str]


@dataclass(frozen=True)
class BatchPlan:
    """The arithmetic of one step, for the case that every sample has the greatest length."""

    prompts: int
    samples: int
    longest_sample: int
    """Tokens of prompt and response."""
    tokens: int
    mini_batches: int
    samples_per_mini_batch: int
    """Of the largest one."""
    micro_batches: int
    """Of each rank, for one mini-batch."""
    samples_per_micro_batch: int


@dataclass(frozen=True)
class Phase:
    """Steps `first` to `last` train with these terms."""

    first: int
    last: int
    terms: str


@dataclass(frozen=True)
class Share:
    """One pool's line in the placement: `actors` of `cpus` and `gpus` each."""

    pool: str
    actors: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Report:
    """All that `show` prints. `notes` are the reasons that `strict` refuses; `warnings` it lets pass."""

    config: RunConfig
    inputs: Inputs
    batch: BatchPlan
    phases: tuple[Phase, ...]
    c_ref: tuple[str, ...]
    size: ModelSize | None
    memory: MemoryPlan | None
    machine: Resources
    sizing: Sizing | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def check(config: RunConfig, strict: bool = False, console: Console | None = None, measured: Path | None = None) -> Report:
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
        if looks_local(config.model.path) and not any(any(Path(config.model.path).glob(pattern)) for pattern in WEIGHT_FILES):
            notes.append(f"model.path: {config.model.path} holds no weights ({' or '.join(WEIGHT_FILES)})")
    machine = local_nodes()
    try:
        bundles_for(config, machine)
    except ConfigError as error:
        notes.append(f"on this machine {str(error).splitlines()[0].rstrip(':')}")
    return Report(config, inputs, batch, tuple(phases), tuple(c_ref), shape, memory, machine[0], sizing, tuple(warnings), tuple(notes))


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

    def attempt(key: str, path: str, local: bool, load: Callable[..., object], *arguments: str | None) -> None:
        try:
            load(*arguments)
        except LaserError as error:
            # Of a hub name that cannot be had, the library that fetches it says so; whatever else is wrong, our own checks say.
            if os.path.exists(path) or not (local or isinstance(error.__cause__, OSError)):
                raise
            absent[key] = str(error) if str(error).startswith(key) else f"{key}: {error}"

    config_file = os.path.join(model, "config.json") if local_model else model
    attempt("model.path", config_file, local_model, load_tokens, model, config.self_reward.token)
    attempt("data.train", data.train, _is_file_name(data.train), load_problems, data.train, data.problem_field, data.answer_field)
    if data.eval is not None:
        attempt("data.eval", data.eval, _is_file_name(data.eval), load_problems, data.eval, *data.eval_fields, "test")
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
    mini_batches = split_mini_batches([rollout.samples_per_prompt] * rollout.prompts_per_step, learning.mini_batches)
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
    warm_up, mix_after = loss.reasoning_warmup_steps, loss.reasoning_warmup_steps + loss.self_reward_warmup_steps

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
        return [f"given: {loss.c_ref:g}", targets, threshold, leak], [f"loss.c_ref: {message}" for message in verdict.messages]
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


def placement(config: RunConfig) -> list[Share]:
    """The pools' actors and what each reserves."""
    learning, rollout, verification = config.learning, config.rollout, config.verification
    engines = Share("rollout", rollout.num_engines, rollout.cpus, rollout.gpus * rollout.tensor_parallel)
    if rollout.colocate:
        engines = Share("rollout, in the learner's turns", rollout.num_engines, 0.0, 0.0)
    return [
        Share("learning", learning.num_ranks, learning.cpus_per_rank, learning.gpus_per_rank),
        engines,
        Share("verification", verification.num_workers, verification.cpus, 0.0),
    ]


def show(report: Report, console: Console) -> None:
    """Print the report."""
    config = report.config
    started = ", which holds a run: `laser train` continues it" if (config.folder / "checkpoints").is_dir() else ""
    console.print(f"[bold]{config.run.name}[/bold]: {config.run.steps:,} steps from {escape(config.model.path)}")
    console.print(f"kept in {escape(str(config.folder))}{started}")
    if config.run.remote:
        console.print(f"kept for any node in {escape(config.run.remote)}: no shared folder is needed, and a newer checkpoint there is used")
    _section(console, "Tokens and prompt", _tokens_table(report.inputs, config))
    if report.inputs.prepared is not None:
        _show_prompt(report.inputs.prepared, config, console)
    _section(console, "One step", _batch_table(report.batch, report.inputs.prepared, config))
    phases = _pairs((_steps(phase), phase.terms) for phase in report.phases)
    _section(console, "Schedule", phases if report.phases else NO_STEPS)
    if report.c_ref:
        _section(console, "c_ref, the log-probability of z_c in the initial model", *report.c_ref)
    if report.size is not None and report.memory is not None:
        _section(console, f"Memory in GiB ({_size(report.size)})", _memory_table(report.memory, config))
        console.print("  Activations and what each actor's libraries take come on top.", style="dim")
    _section(console, "Placement", _placement_table(placement(config), report.machine))
    if report.sizing is not None:
        _show_sizing(report.sizing, console)
    for heading, colour, messages in (("Warnings", "yellow", report.warnings), ("Notes", "cyan", report.notes)):
        if messages:
            _section(console, f"[{colour}]{heading}[/{colour}]", _pairs(("-", message) for message in messages))
    console.print(f"\n{_conclusion(report)}")


def _conclusion(report: Report) -> str:
    if report.inputs.absent:
        return f"The settings are valid. Not checked, because absent here: {', '.join(report.inputs.absent)}."
    if report.notes:
        return "The settings are valid, but the run would not start or fit on this machine: see the notes."
    return "Ready: `laser train` accepts this configuration on this machine."


def _section(console: Console, heading: str, *content: Table | str) -> None:
    console.print(f"\n[bold]{heading}[/bold]")
    for part in content:
        console.print(Padding(escape(part) if isinstance(part, str) else part, (0, 0, 0, 2)))


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    return table


def _tokens_table(inputs: Inputs, config: RunConfig) -> Table:
    instruction = ("instruction", config.data.instruction or "none")
    if inputs.tokens is None:
        return _pairs([("z_c", config.self_reward.token or "none"), instruction])
    tokenizer, z_token = inputs.tokens.tokenizer, inputs.tokens.z_token

    def named(token_id: int) -> str:
        return f"{tokenizer.convert_ids_to_tokens(token_id)} ({token_id})"

    pad = tokenizer.pad_token_id
    rows = [
        ("z_c", "none" if z_token is None else named(z_token)),
        ("EOS", ", ".join(map(named, inputs.tokens.eos_tokens))),
        ("padding", named(pad) if pad is not None else f"{named(tokenizer.eos_token_id)}, since the tokenizer names none"),
        instruction,
    ]
    if inputs.prepared is not None:
        rows.append(("round trip", "problems come back unchanged from encoding and decoding"))
    return _pairs(rows)


def _show_prompt(prepared: Prepared, config: RunConfig, console: Console) -> None:
    """The first training problem as the model will see it, decoded from its token ids."""
    tokenizer = prepared.tokens.tokenizer
    ids = render_prompt(tokenizer, prepared.train.problems[0].text, config.data.instruction)
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if len(text) > SHOWN_PROMPT_CHARACTERS:
        text = f"{text[:SHOWN_PROMPT_CHARACTERS]} [... {len(text) - SHOWN_PROMPT_CHARACTERS} more characters]"
    console.print(f"  the first prompt, {len(ids)} tokens (⏎ marks a newline):")
    console.print(Padding(Text(text.replace("\n", "⏎\n"), style="dim"), (0, 0, 0, 4)))
    if len(ids) <= SHORT_PROMPT_TOKENS:
        console.print(Padding(Text(f"ids {' '.join(map(str, ids))}", style="dim"), (0, 0, 0, 4)))


def _batch_table(batch: BatchPlan, prepared: Prepared | None, config: RunConfig) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    ranks = config.learning.num_ranks
    table.add_row("prompts", f"{batch.prompts:,}", "rollout.prompts_per_step")
    table.add_row("samples", f"{batch.samples:,}", f"x rollout.samples_per_prompt={config.rollout.samples_per_prompt}")
    table.add_row("longest sample", f"{batch.longest_sample:,}", "tokens, rollout.max_prompt_tokens + rollout.max_response_tokens")
    table.add_row("tokens at most", f"{batch.tokens:,}", "all samples of that length")
    table.add_row("optimiser steps", f"{batch.mini_batches}", f"learning.mini_batches, of up to {batch.samples_per_mini_batch:,} samples")
    table.add_row("ranks", f"{ranks}", "learning.num_ranks")
    budget = f"{batch.samples_per_micro_batch} samples, learning.tokens_per_micro_batch={config.learning.tokens_per_micro_batch}"
    table.add_row("micro-batches", f"{batch.micro_batches:,}", f"at most, a rank and optimiser step, of {budget}")
    if prepared is not None:
        problems, dropped = len(prepared.train), prepared.train.dropped
        table.add_row("problems", f"{problems:,}", f"{dropped:,} more are over rollout.max_prompt_tokens and left out")
        epoch = problems / batch.prompts
        table.add_row("steps an epoch", f"{epoch:,.1f}", f"the run's {config.run.steps:,} steps are {config.run.steps / epoch:.2g} epochs")
        if prepared.eval is not None:
            samples = config.evaluation.samples_per_problem
            table.add_row("held-out problems", f"{len(prepared.eval):,}", f"x evaluation.samples_per_problem={samples}, each evaluation")
    return table


def _memory_table(memory: MemoryPlan, config: RunConfig) -> Table:
    learning, rollout = config.learning, config.rollout
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("each", justify="right", no_wrap=True)
    table.add_column("where", no_wrap=True)
    table.add_column("what", style="dim")

    def row(name: str, size: int | None, gpus: float, what: str) -> None:
        table.add_row(name, "-" if size is None else _gib(size), "GPU" if gpus else "CPU", what)

    states = f"weights, gradients and AdamW of 1/{learning.num_ranks} (DeepSpeed's estimate for ZeRO-3)"
    row("learner rank", memory.learner.per_rank, learning.gpus_per_rank, states)
    row("learner buffers", memory.learner.host, 0, f"all ranks together, learning.offload={learning.offload}")
    if memory.reference_per_rank:
        row("reference", memory.reference_per_rank, learning.gpus_per_rank, "the initial model's weights, a learner rank's part")
    row("engine weights", memory.engine_weights, rollout.gpus, f"{config.engine_dtype}, rollout.tensor_parallel={rollout.tensor_parallel}")
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    kv_cache = f"what vLLM finds free; the longest sample takes {_gib(longest * memory.kv_bytes_per_token)}"
    if memory.kv_tokens is not None:
        kv_cache = f"{memory.kv_tokens:,} tokens, {memory.kv_tokens / longest:,.1f} of the longest samples at once"
    row("engine KV cache", memory.kv_cache, rollout.gpus, kv_cache)
    row("object store", memory.in_transit, 0, "the engines' weights and their next version")
    table.add_row("[bold]all pools[/bold]", f"[bold]{_gib(memory.host_total)}[/bold]", "CPU", f"this machine has {_gib(machine_memory())}")
    return table


def _placement_table(shares: list[Share], machine: Resources) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("pool")
    for heading in ("actors", "CPUs each", "GPUs each", "CPUs", "GPUs"):
        table.add_column(heading, justify="right")
    for share in shares:
        numbers = (share.actors, share.cpus, share.gpus, share.actors * share.cpus, share.actors * share.gpus)
        table.add_row(share.pool, *(f"{number:g}" for number in numbers))
    totals = (sum(share.actors * share.cpus for share in shares), sum(share.actors * share.gpus for share in shares))
    table.add_row("[bold]run[/bold]", "", "", "", *(f"[bold]{total:g}[/bold]" for total in totals))
    table.add_row("this machine", "", "", "", f"{machine.get('CPU', 0):g}", f"{machine.get('GPU', 0):g}", style="dim")
    return table


def _show_sizing(sizing: Sizing, console: Console) -> None:
    measured, kind = sizing.measured, sizing.devices.kind
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("engines", "ranks", f"{kind}s", "rollout s", "learn s", "rest s", "step s", "verifiers"):
        table.add_column(heading, justify="right")
    for layout in sizing.layouts:
        sizes = (f"{layout.engines}", f"{layout.ranks}", f"{layout.devices:g}")
        step = f"{layout.step_s:.1f}{' + x' if layout.without_handover else ''}"
        table.add_row(
            layout.name, *sizes, f"{layout.rollout_s:.1f}", f"{layout.learn_s:.1f}", f"{measured.fixed:.1f}", step, f"{layout.verifiers}"
        )
    lines = [
        f"medians of {measured.steps} steps; {sizing.devices.engine:g} {kind}s an engine, {sizing.devices.rank:g} a rank, perfect scaling "
        "assumed: measure again after a change",
    ]
    if sizing.turn_budget_s is not None:
        lines.append(
            f"x is the hand-over of rollout.colocate, which this run has not measured: taking turns is faster if it is under "
            f"{sizing.turn_budget_s:.1f} s a step, both ways together"
        )
    _section(console, f"Pool sizes for {sizing.total:g} {kind}s", table, *lines)


def _steps(phase: Phase) -> str:
    return f"steps {phase.first:,} to {phase.last:,}" if phase.last > phase.first else f"step {phase.first:,}"


def _size(size: ModelSize) -> str:
    billions = size.parameters / 1e9
    return f"{size.model_type}, {f'{billions:.2f} billion' if billions >= 0.1 else f'{size.parameters / 1e6:.2f} million'} parameters"


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}" if size >= GIB / 100 or size == 0 else "< 0.01"
