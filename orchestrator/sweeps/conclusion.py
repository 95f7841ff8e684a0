"""The end of a sweep: deliver the runs' last metrics, register the best weights, write the report."""

from collections.abc import Collection, Mapping
from pathlib import Path

from dashboards.report import write_report
from orchestrator.errors import LaserError
from orchestrator.models.registry import register_model
from orchestrator.storage.files import claimed
from orchestrator.storage.journal import JOURNAL
from orchestrator.sweeps.plan import SweepPlan
from orchestrator.sweeps.progress import SweepProgress
from orchestrator.sweeps.results import OVER, Ledger, State, SweepBest, SweepOutcome, Trial, Trunk
from orchestrator.sweeps.trial import TRIAL_PATIENCE_S, tags_of
from orchestrator.tracking.parent_run import ParentRun
from orchestrator.tracking.tracker import deliver_leftovers


class Conclusion:
    """Turns a sweep whose runs are over into its outcome.

    Args:
        tracker: The sweep's own MLflow run.
        tags: Tags of every run's MLflow run.
        ended: Names of the runs that ended in this call.
    """

    def __init__(
        self,
        plan: SweepPlan,
        ledger: Ledger,
        tracker: ParentRun,
        progress: SweepProgress,
        tags: Mapping[str, str],
        ended: Collection[str],
    ) -> None:
        self.plan = plan
        self.ledger = ledger
        self.tracker = tracker
        self.progress = progress
        self.tags = tags
        self.ended = ended

    def conclude(self) -> SweepOutcome:
        """Deliver, register and report. A failure is shown and raises nothing: the same command retries."""
        for run in self.ledger.runs:
            if run.status in OVER:
                self._deliver(run)
        best, model = self.ledger.best(), None
        if best is not None:
            model = self._register(best)
            figures = self.ledger.trials[best.trial].metrics
            self.tracker.log(
                {"best/objective": best.objective, "work/share": self.ledger.work().share}
                | {f"best/{name}": value for name, value in figures.items() if value is not None}
            )
        self.ledger.save()
        report = self._write_report()
        self.tracker.log_artifact(self.ledger.path)
        return SweepOutcome(
            self.plan.folder, list(self.ledger.trials.values()), best, self.ledger.work(), model, report
        )

    def _deliver(self, run: Trial | Trunk) -> None:
        """Send the metrics that MLflow does not have yet, and mark a run that was stopped."""
        member = self.ledger.members[run.name]
        if not (member.config.folder / JOURNAL).exists():
            return
        try:
            with claimed(member.config.folder, TRIAL_PATIENCE_S):  # the trial's driver may still be ending
                deliver_leftovers(
                    member.config,
                    self.progress.say_plainly,
                    tags_of(member, self.plan, self.tags),
                    finished=run.status is State.FINISHED,
                )
        except LaserError as error:
            self.progress.say_plainly(f"{run.name}: some of its metrics have not reached MLflow: {error}")
        self.ledger.look(run)
        if run.mlflow_run_id and run.name in self.ended and run.status is not State.FINISHED:
            status = "KILLED" if run.status is State.PRUNED else "FAILED"
            self.tracker.tag_child(run.mlflow_run_id, {"laser.status": str(run.status)}, status)

    def _register(self, best: SweepBest) -> str | None:
        """Register the best trial's weights under the sweep's name with the alias `best`.

        Returns:
            `models:/NAME@best`, or None when MLflow could not register them.
        """
        trial = self.ledger.trials[best.trial]
        name = self.plan.sweep.name
        if trial.mlflow_run_id is None:
            self.progress.say(
                f"MLflow has no run of {trial.name} yet, so its weights are not registered. "
                "Run the same command again to register them"
            )
            return None
        try:
            register_model(
                self.plan.tracking_uri,
                name,
                self.ledger.members[trial.name].config.folder / "export",
                trial.mlflow_run_id,
                tags={
                    "laser.sweep": name,
                    "laser.trial": trial.name,
                    "laser.objective": f"{trial.objective:.6g}",
                },
            )
        except (LaserError, OSError) as error:
            self.progress.say_plainly(
                f"the best weights were not registered: {error}. Run the same command again to register them"
            )
            return None
        return f"models:/{name}@best"

    def _write_report(self) -> Path | None:
        path = self.plan.folder / "report.html"
        try:
            write_report([self.plan.folder], path)
            self.tracker.log_artifact(path)
        except LaserError as error:
            self.progress.say_plainly(f"the report was not written: {error}")
            return None
        return path
