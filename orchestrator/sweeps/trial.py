"""A trial on Ray Tune: a driver in an actor without resources, whose pools fill the placement group.

In: a plan, and the run of it to train. Out: a report to Tune for each evaluation, the last one marked
`final`; all else is in the run's folder, from which the same call resumes. A failure that a retry cannot
fix is reported as `refused` and is not retried.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune.search.repeater import TRIAL_INDEX

from orchestrator.cluster.bundles import bundles_for
from orchestrator.cluster.nodes import Resources
from orchestrator.config.formula import Formula
from orchestrator.errors import LaserError, PoolError
from orchestrator.storage.files import write_atomically
from orchestrator.storage.journal import saved_run_id
from orchestrator.sweeps.environment import use_tracking_server
from orchestrator.sweeps.plan import Member, SweepPlan
from orchestrator.sweeps.results import objective
from orchestrator.terminal import RunProgress, SafeConsole
from orchestrator.training.context import RunContext
from orchestrator.training.run import train

TRIAL_PATIENCE_S = 60.0
"""Seconds that a trial waits for its folder, which the process of a killed sweep may still hold."""

NO_VALUE = -1e9
"""Reported to Tune where the metric is not defined: schedulers and searchers need a number."""


@dataclass(frozen=True)
class TrialRunner:
    """Finds the run that Tune's configuration of a trial stands for, and trains it."""

    plan: SweepPlan
    nodes: list[Resources]
    """The cluster for which the placement groups were requested."""
    tags: dict[str, str]
    """Tags of every run's MLflow run: its parent and its sweep."""

    def member(self, config: Mapping[str, Any]) -> Member:
        """The run that `config` stands for: one of the plan, by name, or a point that Optuna proposes."""
        sweep = self.plan.sweep
        if "member" in config:
            return next(
                member for member in [*self.plan.trunks, *self.plan.trials] if member.name == config["member"]
            )
        return self.plan.trial(config["point"], sweep.seeds[config.get(TRIAL_INDEX, 0)])

    def resources(self, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        """The trial's placement group. Its first bundle is the driver's and empty."""
        return tune.PlacementGroupFactory(
            [{}, *bundles_for(self.member(config).config, self.nodes).all], strategy="PACK"
        )

    def __call__(self, config: dict[str, Any]) -> None:
        """Train a trial in this process, which Tune has started for it."""
        member = self.member(config)
        if member.config.tracking.uri is None:
            use_tracking_server(self.plan.tracking_uri)
        folder = member.config.folder
        folder.mkdir(parents=True, exist_ok=True)
        metric = Formula(self.plan.sweep.metric)

        def report(step: int, figures: Mapping[str, float | None], final: bool = False) -> None:
            value = None if member.is_trunk else objective(metric, figures)
            tune.report(
                {
                    "step": step,
                    "objective": NO_VALUE if value is None else value,
                    "figures": figures,
                    "final": final,
                }
            )

        context = RunContext(
            tags=tags_of(member, self.plan, self.tags),
            bundles=bundles_for(member.config, self.nodes),
            is_trunk=member.is_trunk,
            trunk=self._trunk_folder(member),
            report=report,
            lock_patience_s=TRIAL_PATIENCE_S,
        )
        if context.trunk is not None and not (folder / "checkpoints").exists():
            self._record_branch(folder, context.trunk, member)
        with (folder / "log.txt").open("a") as log:
            console = SafeConsole(file=log, width=160, highlight=False)
            try:
                outcome = train(
                    member.config, RunProgress(member.name, member.config.run.steps, 0, console), context
                )
            except LaserError as error:
                if isinstance(error, PoolError) or isinstance(error.__cause__, RayError | OSError):
                    raise  # Tune retries: a new process or another node may succeed
                tune.report({"step": 0, "objective": NO_VALUE, "refused": str(error)})
                return
        report(outcome.summary["steps"], outcome.summary["trained"] or {}, final=True)

    def _trunk_folder(self, member: Member) -> Path | None:
        return self.plan.folder / "trunks" / member.trunk if member.trunk else None

    def _record_branch(self, folder: Path, trunk: Path, member: Member) -> None:
        branch = {
            "trunk": os.path.relpath(trunk, folder),
            "step": member.config.loss.reasoning_warmup_steps,
            "trunk_run_id": saved_run_id(trunk),
        }
        write_atomically(folder / "branch.json", json.dumps(branch, indent=2) + "\n")


def tags_of(member: Member, plan: SweepPlan, common: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run's MLflow run: its parent, its kind and its trunk."""
    tags = {**common, "laser.kind": "trunk" if member.is_trunk else "branch" if member.trunk else "trial"}
    if member.trunk:
        tags |= {
            "laser.trunk": member.trunk,
            "laser.branch_step": str(member.config.loss.reasoning_warmup_steps),
            "laser.trunk_run_id": saved_run_id(plan.folder / "trunks" / member.trunk) or "not known yet",
        }
    return tags
