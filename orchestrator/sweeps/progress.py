"""What a person sees while a sweep goes on: its trials, the best so far and the time left; and its answer as a table."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from orchestrator.sweeps.results import OVER, Ledger, State, Trial, Trunk, Work
from orchestrator.terminal import LivePanel, clock, figure

if TYPE_CHECKING:
    from orchestrator.sweeps.plan import Plan
    from orchestrator.sweeps.results import SweepOutcome

ROWS = 20
"""Trials that the live table shows at most: the running ones and the best."""

COLOURS = {
    State.RUNNING: "cyan",
    State.FINISHED: "green",
    State.PRUNED: "yellow",
    State.FAILED: "red",
    State.PENDING: "dim",
}


class SweepProgress(LivePanel):
    """A live table in a terminal, a line for each event elsewhere."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        super().__init__(console)
        self.title = title
        self.began = time.monotonic()
        self.steps_at_start: int | None = None

    def evaluated(self, trial: Trial) -> None:
        """A trial has an evaluation."""
        if not self.live:
            self.say(f"{trial.name}: step {trial.step}/{trial.steps}  objective {figure(trial.objective)}")

    def ended(self, run: Trial | Trunk, ledger: Ledger) -> None:
        """A run is over."""
        colour = COLOURS[run.status]
        objective = (
            f"  objective {figure(run.objective)}"
            if isinstance(run, Trial) and run.objective is not None
            else ""
        )
        reason = f"  {escape(run.error)}" if run.error else ""
        self.say(
            f"{run.name}: [{colour}]{run.status}[/{colour}] at step {run.step}/{run.steps}{objective}{reason}"
        )
        if not self.live:
            self.say(self._headline(ledger, ledger.work()))

    def show(self, ledger: Ledger) -> None:
        """Bring the live table up to date."""
        work = ledger.work()
        if self.steps_at_start is None:
            self.steps_at_start = work.steps_trained
        if self.live:
            self.live.update(
                Group(
                    self._headline(ledger, work),
                    trial_table(ledger.keys, _shown(list(ledger.trials.values()))),
                )
            )

    def _headline(self, ledger: Ledger, work: Work) -> str:
        runs: list[Trial | Trunk] = [*ledger.trunks.values(), *ledger.trials.values()]
        over = sum(run.status in OVER for run in ledger.trials.values())
        best = ledger.best()
        planned = max(ledger.planned, len(ledger.trials))
        parts = [f"[bold]{self.title}[/bold]  {over}/{planned} trials"]
        if running := [trunk.name for trunk in ledger.trunks.values() if trunk.status is State.RUNNING]:
            steps = ", ".join(
                f"{name} {ledger.trunks[name].step}/{ledger.trunks[name].steps}" for name in running
            )
            parts.append(f"training {steps}")
        if best is not None:
            point = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in best.point.items())
            parts.append(f"best [green]{best.objective:.3f}[/green] {point}")
        done = work.steps_trained - (self.steps_at_start or 0)
        left = sum(_steps_left(run, ledger) for run in runs)
        if ledger.trials:  # those that are still to be proposed are like the others
            each = sum(trial.steps - trial.branch_step for trial in ledger.trials.values()) / len(
                ledger.trials
            )
            left += round((planned - len(ledger.trials)) * each)
        elapsed = time.monotonic() - self.began
        parts.append(
            f"{clock(elapsed)}, "
            + (f"{clock(elapsed / done * left)} left" if done else "time left not known yet")
        )
        return "   ".join(parts)


def trial_table(
    keys: Sequence[str], trials: Sequence[Trial], title: str | None = None, best: str | None = None
) -> Table:
    """Trials with their points, states and figures; the row of the trial named `best` is marked."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for key in keys:
        table.add_column(key.rpartition(".")[2], justify="right", overflow="fold")
    for name in ("seed", "state", "step", "accuracy", "F1", "AUROC", "objective"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for trial in trials:
        values = [str(trial.point.get(key, "")) for key in keys]
        figures = [figure(trial.metrics.get(name)) for name in ("accuracy", "self_verification_f1", "auroc")]
        state = f"[{COLOURS[trial.status]}]{trial.status}[/]"
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


def show_plan(plan: "Plan", console: Console | None = None) -> None:
    """What a sweep would train, before it does."""
    console = console or Console(highlight=False)
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
            f"{sweep.search.points} points that Optuna is to propose, each with {len(sweep.seeds)} seed(s)"
        )
    alone = sum(trial.config.run.steps for trial in trials)
    if alone:
        saved = sum(trial.config.loss.reasoning_warmup_steps for trial in trials if trial.trunk)
        work = Work(alone - saved + sum(trunk.config.run.steps for trunk in trunks), alone)
        console.print(
            f"{len(trials)} trials: {work.steps_trained} training steps; {work.steps_independent} without shared trunks "
            f"({work.share:.2f} of them)"
        )


def show_outcome(
    outcome: "SweepOutcome", keys: Sequence[str], tracking: str, console: Console | None = None
) -> None:
    """The sweep's answer: the table, the best point, the work that was saved, what failed, and where everything is."""
    console = console or Console(highlight=False)
    best = outcome.best
    ranked = sorted(outcome.trials, key=_rank)
    console.print(trial_table(keys, ranked, f"{len(ranked)} trials", None if best is None else best.trial))
    for trial in outcome.failed:
        console.print(f"[red]failed[/red]  {trial.name}: {escape(trial.error or '')}", soft_wrap=True)
    if best is not None:
        point = " ".join(f"{key}={value}" for key, value in best.point.items())
        over = f" (mean over {best.seeds} seeds)" if best.seeds > 1 else ""
        console.print(
            f"best      [bold]{point}[/bold]   objective {best.objective:.3f}{over}", soft_wrap=True
        )
    work = outcome.work
    console.print(
        f"work      {work.steps_trained} training steps; {work.steps_independent} without shared trunks ({work.share:.2f} of them)",
        soft_wrap=True,
    )
    lines = [f"results   {outcome.folder / 'results.json'}"]
    if outcome.report is not None:
        lines.insert(0, f"report    {outcome.report}")
    if outcome.model is not None:
        lines.append(f"model     {outcome.model}   in MLflow's registry")
    for line in [*lines, f"curves    {tracking}"]:
        console.print(line, soft_wrap=True, markup=False)


def _rank(trial: Trial) -> tuple[int, float]:
    """Finished trials first, the best of them first."""
    return (
        [State.FINISHED, State.PRUNED, State.RUNNING, State.PENDING, State.FAILED].index(trial.status),
        -(trial.objective or 0.0),
    )


def _shown(trials: list[Trial]) -> list[Trial]:
    if len(trials) <= ROWS:
        return trials
    running = [trial for trial in trials if trial.status is State.RUNNING]
    others = sorted((trial for trial in trials if trial.status is not State.RUNNING), key=_rank)
    return running + others[: max(0, ROWS - len(running))]


def _steps_left(run: Trial | Trunk, ledger: Ledger) -> int:
    if run.status in OVER:
        return 0
    done = run.step
    if isinstance(run, Trial) and run.trunk in ledger.trunks:
        done = max(done, ledger.trunks[run.trunk].steps)
    return max(0, run.steps - done)
