"""Prints the `Report` of `laser check`."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.cluster.machine import GIB, MainMemory
from orchestrator.cluster.nodes import Resources
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import ModelTokens
from orchestrator.planning.report import BatchPlan, Inputs, PoolShare, Report, TrainingPhase
from orchestrator.planning.sizing import Sizing
from orchestrator.pools.memory import DRIVER_BYTES, RAY_BYTES, VERIFIER_BYTES, MemoryPlan, ModelSize
from orchestrator.training.preparation import PreparedRun

SHORT_PROMPT_TOKENS = 40
"""The ids of a prompt of at most so many tokens are printed too."""
SHOWN_PROMPT_CHARACTERS = 1200
NO_STEPS = "no training step (run.steps is 0): the run only measures the initial model"


def show(report: Report, console: Console) -> None:
    """Print the report, a section for each subject, and what follows from it."""
    config, inputs = report.config, report.inputs
    _show_header(config, console)
    _section(console, "Tokens and prompt", _tokens_table(inputs, config))
    if inputs.prepared is not None:
        _show_prompts(inputs.prepared, console)
    _section(console, "One step", _batch_table(report.batch, inputs.prepared, config))
    phases = _pairs((_steps(phase), phase.terms) for phase in report.phases)
    _section(console, "Schedule", phases if report.phases else NO_STEPS)
    if report.c_ref:
        _section(console, "c_ref, the log-probability of z_c in the initial model", *report.c_ref)
    if report.staleness:
        _section(console, f"Staleness {config.rollout.max_staleness}", *report.staleness)
    if report.size is not None and report.memory is not None:
        memory = _memory_table(report.memory, report.machine_memory, config)
        _section(console, f"Memory in GiB ({_size(report.size)})", memory)
    _section(console, "Placement", _placement_table(report.placement, report.machine))
    if report.sizing is not None:
        _show_sizing(report.sizing, console)
    for heading, messages in (
        ("[yellow]Warnings[/yellow]", report.warnings),
        ("[cyan]Notes[/cyan]", report.notes),
    ):
        if messages:
            _section(console, heading, _pairs(("-", message) for message in messages))
    console.print(f"\n{_conclusion(report)}")


def _show_header(config: RunConfig, console: Console) -> None:
    steps = f"{config.run.steps:,} steps from {escape(config.model.path)}"
    console.print(f"[bold]{config.run.name}[/bold]: {steps}")
    resumes = (config.folder / "checkpoints").is_dir()
    holds_a_run = ", which holds a run: `laser train` resumes it" if resumes else ""
    console.print(f"kept in {escape(str(config.folder))}{holds_a_run}")
    if config.run.remote:
        console.print(
            f"copied to {escape(config.run.remote)}: nodes need no shared folder, and `laser train` resumes "
            "from "
            "a newer checkpoint there"
        )


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
        (
            "padding",
            named(pad)
            if pad is not None
            else f"{named(tokenizer.eos_token_id)}, because the tokenizer has no padding token",
        ),
        instruction,
    ]
    if inputs.prepared is not None:
        rows.append(("round trip", "problems come back unchanged from encoding and decoding"))
    return _pairs(rows)


def _show_prompts(prepared: PreparedRun, console: Console) -> None:
    """Print the first training problem of each source as the model sees it, decoded from its token ids."""
    for source in prepared.train.sources:
        ids = prepared.train.first_prompt(source).token_ids
        text = marked_tokens(prepared.tokens, ids)
        if len(text) > SHOWN_PROMPT_CHARACTERS:
            more = len(text) - SHOWN_PROMPT_CHARACTERS
            text = f"{text[:SHOWN_PROMPT_CHARACTERS]} [... {more} more characters]"
        of = f" of {source.settings.name}" if prepared.train.sources[1:] else ""
        console.print(
            f"  the first prompt{escape(of)}, {len(ids)} tokens (⏎ marks a newline, ⟦ ⟧ a special token):"
        )
        console.print(Padding(Text(text.replace("\n", "⏎\n"), style="dim"), (0, 0, 0, 4)))
        if len(ids) <= SHORT_PROMPT_TOKENS:
            console.print(Padding(Text(f"ids {' '.join(map(str, ids))}", style="dim"), (0, 0, 0, 4)))


def marked_tokens(tokens: ModelTokens, token_ids: Sequence[int]) -> str:
    """The text of token ids, with each special token in brackets."""
    special = {*tokens.tokenizer.all_special_ids, *tokens.chat.control.ids.values()}

    def text(is_special: bool, ids: Iterable[int]) -> str:
        if is_special:
            return "".join(f"⟦{tokens.tokenizer.convert_ids_to_tokens(id_)}⟧" for id_ in ids)
        return str(tokens.tokenizer.decode([*ids], clean_up_tokenization_spaces=False))

    return "".join(text(*run) for run in groupby(token_ids, special.__contains__))


def _batch_table(batch: BatchPlan, prepared: PreparedRun | None, config: RunConfig) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    ranks = config.learning.num_ranks
    table.add_row("prompts", f"{batch.prompts:,}", "rollout.prompts_per_step")
    table.add_row(
        "samples", f"{batch.samples:,}", f"x rollout.samples_per_prompt={config.rollout.samples_per_prompt}"
    )
    table.add_row(
        "longest sample",
        f"{batch.longest_sample:,}",
        "tokens, rollout.max_prompt_tokens + rollout.max_response_tokens",
    )
    table.add_row("tokens at most", f"{batch.tokens:,}", "all samples of that length")
    table.add_row(
        "optimiser steps",
        f"{batch.mini_batches}",
        f"learning.mini_batches, of up to {batch.samples_per_mini_batch:,} samples",
    )
    table.add_row("ranks", f"{ranks}", "learning.num_ranks")
    budget = f"learning.tokens_per_micro_batch={config.learning.tokens_per_micro_batch}"
    table.add_row(
        "micro-batches",
        f"{batch.micro_batches:,}",
        f"at most, for each rank and optimiser step; {batch.samples_per_micro_batch} samples each, {budget}",
    )
    if prepared is not None:
        problems, sample = len(prepared.train), prepared.sample
        table.add_row(
            "problems",
            f"{problems:,}",
            f"{sample.too_long:,} of the first {sample.prompts:,} are longer than rollout.max_prompt_tokens "
            "and are skipped",
        )
        shares = sum(source.settings.weight for source in prepared.train.sources)
        for source in prepared.train.sources if prepared.train.sources[1:] else ():
            share = source.settings.weight / shares
            table.add_row(
                f"  {escape(source.settings.name)}", f"{len(source):,}", f"{share:.1%} of a step's prompts"
            )
        epoch = problems / batch.prompts
        table.add_row(
            "steps an epoch",
            f"{epoch:,.1f}",
            f"the run's {config.run.steps:,} steps are {config.run.steps / epoch:.2g} epochs",
        )
        for held_out in prepared.eval:
            table.add_row(
                "held-out problems",
                f"{len(held_out.prompts):,}",
                f"of {escape(held_out.name)}, x evaluation.samples_per_problem="
                f"{held_out.samples_per_problem}, each evaluation",
            )
    return table


def _memory_table(memory: MemoryPlan, room: MainMemory, config: RunConfig) -> Table:
    learning, rollout = config.learning, config.rollout
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("each", justify="right", no_wrap=True)
    table.add_column("where", no_wrap=True)
    table.add_column("what", style="dim")

    def row(name: str, size: int | None, gpus: float, what: str) -> None:
        table.add_row(name, "-" if size is None else _gib(size), "GPU" if gpus else "CPU", what)

    rank, engine = memory.rank, memory.engine
    row("learner rank", rank.peak, learning.gpus_per_rank, "at its peak:")
    for part, size, what in (
        ("weights", rank.weights, f"1/{learning.num_ranks}, {learning.dtype}"),
        ("states", rank.states, "float32 masters, gradients and AdamW's two moments of them"),
        ("streaming", rank.streamed, "gradients of the self-reward's two classes, up to 2 passes a sample"),
        ("buffers", rank.gathered, "of collectives"),
        ("reference", rank.reference, "a rank's part of the initial model's weights"),
        ("libraries", rank.libraries, "Python, torch, DeepSpeed, transformers (measured)"),
        ("activations", rank.activations, f"of {learning.tokens_per_micro_batch:,} tokens"),
        ("head", rank.head, "logits and gradients, beside the activations"),
        ("update", rank.update, "AdamW's temporaries, after the activations have gone"),
    ):
        if size:
            row(f"  {part}", size, learning.gpus_per_rank, what)
    if rank.host:
        row("offloaded", rank.host, 0, f"a rank's states, learning.offload={learning.offload}")
    row("engine", engine.peak, rollout.gpus, "at its peak:")
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    longest_gib = _gib(longest * engine.kv_bytes_per_token)
    kv_cache = f"the free memory that vLLM finds; the longest sample takes {longest_gib}"
    if engine.kv_tokens is not None:
        kv_cache = (
            f"{engine.kv_tokens:,} tokens, {engine.kv_tokens / longest:,.1f} of the longest samples at once"
        )
    weights = f"{config.engine_dtype}, rollout.tensor_parallel={rollout.tensor_parallel}"
    row("  weights", engine.weights, rollout.gpus, weights)
    row("  KV cache", engine.kv_cache, rollout.gpus, kv_cache)
    if engine.libraries:
        row("  packed", engine.packed, 0, "copies of weights for a CPU's matrix products (measured share)")
        row("  loading", engine.loading, 0, "the head and its packed copy, while new weights come")
        row("  libraries", engine.libraries, 0, "Python, torch, vLLM, its compiler (measured)")
    row("verifier", VERIFIER_BYTES, 0, "with its child (measured)")
    row("driver, Ray", DRIVER_BYTES + RAY_BYTES, 0, "`laser train`, and Ray's own processes (measured)")
    row("object store", 2 * memory.published, 0, "the engines' weights and their next version")
    for phase, size in memory.host_phases.items():
        row(f"all pools, {phase}", size, 0, "")
    table.add_row(
        "[bold]at the peak[/bold]",
        f"[bold]{_gib(memory.host_total)}[/bold]",
        "CPU",
        f"of {_gib(room.for_run)} that a run can take on this machine",
    )
    return table


def _placement_table(shares: Sequence[PoolShare], machine: Resources) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("pool")
    for heading in ("actors", "CPUs each", "GPUs each", "CPUs", "GPUs"):
        table.add_column(heading, justify="right")
    for share in shares:
        numbers = (share.actors, share.cpus, share.gpus, share.actors * share.cpus, share.actors * share.gpus)
        table.add_row(share.pool, *(f"{number:g}" for number in numbers))
    totals = (
        sum(share.actors * share.cpus for share in shares),
        sum(share.actors * share.gpus for share in shares),
    )
    table.add_row("[bold]run[/bold]", "", "", "", *(f"[bold]{total:g}[/bold]" for total in totals))
    table.add_row(
        "this machine", "", "", "", f"{machine.get('CPU', 0):g}", f"{machine.get('GPU', 0):g}", style="dim"
    )
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
            layout.name,
            *sizes,
            f"{layout.rollout_s:.1f}",
            f"{layout.learn_s:.1f}",
            f"{measured.fixed:.1f}",
            step,
            f"{layout.verifiers}",
        )
    lines = [
        f"medians of {measured.steps} steps; {sizing.devices.engine:g} {kind}s an engine, "
        f"{sizing.devices.rank:g} a "
        "rank; perfect scaling is assumed, so measure again after a change",
    ]
    if sizing.turn_budget_s is not None:
        lines.append(
            "x is the hand-over of rollout.colocate, which this run has not measured: taking turns is faster "
            "if x is "
            f"under {sizing.turn_budget_s:.1f} s a step, both ways together"
        )
    _section(console, f"Pool sizes for {sizing.total:g} {kind}s", table, *lines)


def _steps(phase: TrainingPhase) -> str:
    return f"steps {phase.first:,} to {phase.last:,}" if phase.last > phase.first else f"step {phase.first:,}"


def _size(size: ModelSize) -> str:
    if size.parameters >= 1e8:
        return f"{size.model_type}, {size.parameters / 1e9:.2f} billion parameters"
    return f"{size.model_type}, {size.parameters / 1e6:.2f} million parameters"


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}" if size >= GIB / 100 or size == 0 else "< 0.01"
