"""The display of a running sweep: its trials, the best point so far and the time left."""

import time

from rich.console import Console, Group
from rich.markup import escape

from orchestrator.sweeps.results import OVER, Ledger, State, SweepWork, Trial, Trunk
from orchestrator.sweeps.show import STATE_COLOURS, rank, trial_table
from orchestrator.terminal import LivePanel, clock, figure

LIVE_ROWS = 20
"""Most trials in the live table: the running ones, then the best of the others."""


class SweepProgress(LivePanel):
    """A live table in a terminal; elsewhere a line for each event."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        super().__init__(console)
        self.title = title
        self.began = time.monotonic()
        self.steps_at_start: int | None = None

    def evaluated(self, trial: Trial) -> None:
        """Report a trial's new evaluation."""
        if not self.live:
            self.say(f"{trial.name}: step {trial.step}/{trial.steps}  objective {figure(trial.objective)}")

    def ended(self, run: Trial | Trunk, ledger: Ledger) -> None:
        """Report that a run has ended."""
        colour = STATE_COLOURS[run.status]
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
        """Update the live table."""
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

    def _headline(self, ledger: Ledger, work: SweepWork) -> str:
        over = sum(run.status in OVER for run in ledger.trials.values())
        planned = max(ledger.planned, len(ledger.trials))
        parts = [f"[bold]{self.title}[/bold]  {over}/{planned} trials"]
        running = [trunk for trunk in ledger.trunks.values() if trunk.status is State.RUNNING]
        if running:
            parts.append(
                "training " + ", ".join(f"{trunk.name} {trunk.step}/{trunk.steps}" for trunk in running)
            )
        best = ledger.best()
        if best is not None:
            point = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in best.point.items())
            parts.append(f"best [green]{best.objective:.3f}[/green] {point}")
        return "   ".join([*parts, self._time(ledger, work, planned)])

    def _time(self, ledger: Ledger, work: SweepWork, planned: int) -> str:
        """Time so far and time left, at this call's pace in steps."""
        done = work.steps_trained - (self.steps_at_start or 0)
        left = sum(_steps_left(run, ledger) for run in ledger.runs)
        if ledger.trials:  # trials that Optuna has not proposed yet count as many steps as the others
            own = [trial.steps - trial.branch_step for trial in ledger.trials.values()]
            left += round((planned - len(own)) * sum(own) / len(own))
        elapsed = time.monotonic() - self.began
        remaining = f"{clock(elapsed / done * left)} left" if done else "time left not known yet"
        return f"{clock(elapsed)}, {remaining}"


def _shown(trials: list[Trial]) -> list[Trial]:
    if len(trials) <= LIVE_ROWS:
        return trials
    running = [trial for trial in trials if trial.status is State.RUNNING]
    others = sorted((trial for trial in trials if trial.status is not State.RUNNING), key=rank)
    return running + others[: max(0, LIVE_ROWS - len(running))]


def _steps_left(run: Trial | Trunk, ledger: Ledger) -> int:
    if run.status in OVER:
        return 0
    done = run.step
    if isinstance(run, Trial) and run.trunk in ledger.trunks:
        done = max(done, ledger.trunks[run.trunk].steps)
    return max(0, run.steps - done)
