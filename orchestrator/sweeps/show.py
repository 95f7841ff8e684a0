"""A sweep's plan, its table of trials and its outcome, printed for a person."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.sweeps.plan import SweepPlan
from orchestrator.sweeps.results import State, SweepOutcome, SweepWork, Trial
from orchestrator.terminal import SafeConsole, figure

STATE_COLOURS = {
    State.RUNNING: "cyan",
    State.FINISHED: "green",
    State.PRUNED: "yellow",
    State.FAILED: "red",
    State.PENDING: "dim",
}


def trial_table(
    keys: Sequence[str], trials: Sequence[Trial], title: str | None = None, best: str | None = None
) -> Table:
    """A table of trials with their points, states and figures.

    Args:
        keys: The searched keys, one column each.
        best: Name of the trial whose row is bold.
    """
    table = Table(title=title, box=SIMPLE_HEAD)
    for key in keys:
        table.add_column(key.rpartition(".")[2], justify="right", overflow="fold")
    for name in ("seed", "state", "step", "accuracy", "F1", "AUROC", "objective"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for trial in trials:
        values = [escape(str(trial.point.get(key, ""))) for key in keys]
        figures = [figure(trial.metrics.get(name)) for name in ("accuracy", "self_verification_f1", "auroc")]
        state = f"[{STATE_COLOURS[trial.status]}]{trial.status}[/]"
        table.add_row(
            *values,
            str(trial.seed),
            state,
            f"{trial.step}/{trial.steps}",
            *figures,
            figure(trial.objective),
            style="bold" if trial.name == best else None,
        )
    return table


def show_plan(plan: SweepPlan, console: Console | None = None) -> None:
    """Print what a sweep would train."""
    console = console or SafeConsole(highlight=False)
    sweep, trials, trunks = plan.sweep, plan.trials, plan.trunks
    for trunk in trunks:
        shared = sum(trial.trunk == trunk.name for trial in trials) or (sweep.search.points or 0)
        console.print(
            f"{trunk.name}: {trunk.config.run.steps} steps, shared by {shared} trials", soft_wrap=True
        )
    for trial in trials:
        own = trial.config.run.steps - (trial.config.loss.reasoning_warmup_steps if trial.trunk else 0)
        console.print(
            f"{trial.name}: {own} steps" + (f" from the end of {trial.trunk}" if trial.trunk else ""),
            soft_wrap=True,
        )
    if not trials:
        console.print(
            f"{sweep.search.points} points, which Optuna will propose, each with {len(sweep.seeds)} seed(s)"
        )
    alone = sum(trial.config.run.steps for trial in trials)
    if alone:
        saved = sum(trial.config.loss.reasoning_warmup_steps for trial in trials if trial.trunk)
        work = SweepWork(alone - saved + sum(trunk.config.run.steps for trunk in trunks), alone)
        console.print(f"{len(trials)} trials: {_work_text(work)}")


def show_outcome(
    outcome: SweepOutcome, keys: Sequence[str], tracking: str, console: Console | None = None
) -> None:
    """Print a sweep's trials, failures, best point and training steps, and where its files are.

    Args:
        tracking: Where the curves are: MLflow's address, or the command that starts its page.
    """
    console = console or SafeConsole(highlight=False)
    best = outcome.best
    ranked = sorted(outcome.trials, key=rank)
    console.print(trial_table(keys, ranked, f"{len(ranked)} trials", None if best is None else best.trial))
    for trial in outcome.failed:
        console.print(f"[red]failed[/red]  {trial.name}: {escape(trial.error or '')}", soft_wrap=True)
    if best is not None:
        point = escape(" ".join(f"{key}={value}" for key, value in best.point.items()))
        over = f" (mean over {best.seeds} seeds)" if best.seeds > 1 else ""
        console.print(
            f"best      [bold]{point}[/bold]   objective {best.objective:.3f}{over}", soft_wrap=True
        )
    console.print(f"work      {_work_text(outcome.work)}", soft_wrap=True)
    lines = [f"results   {outcome.folder / 'results.json'}"]
    if outcome.report is not None:
        lines.insert(0, f"report    {outcome.report}")
    if outcome.model is not None:
        lines.append(f"model     {outcome.model}   in MLflow's registry")
    for line in [*lines, f"curves    {tracking}"]:
        console.print(line, soft_wrap=True, markup=False)


def rank(trial: Trial) -> tuple[int, float]:
    """A sorting key: finished trials first; in each state the best first, and undefined metrics last."""
    order = [State.FINISHED, State.PRUNED, State.RUNNING, State.PENDING, State.FAILED]
    return order.index(trial.status), math.inf if trial.objective is None else -trial.objective


def _work_text(work: SweepWork) -> str:
    return (
        f"{work.steps_trained} training steps; {work.steps_independent} without shared trunks "
        f"({work.share:.2f} of them)"
    )
