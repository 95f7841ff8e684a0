"""A trial as Ray Tune runs it: a thin driver, in an actor without resources of its own, whose pools fill the trial's placement group.

In: a plan and the run of it that is to be trained. Out: a report to Tune at each evaluation, the last one with `final`; everything
else is in the run's folder, from which the same call continues. What can only fail again is reported as `refused` and not tried again.
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
from rich.console import Console

from orchestrator.cluster.bundles import bundles_for
from orchestrator.cluster.nodes import Resources
from orchestrator.config.formula import Formula
from orchestrator.errors import LaserError, PoolError
from orchestrator.storage.files import write_atomically
from orchestrator.storage.journal import saved_run_id
from orchestrator.sweeps.plan import Member, Plan
from orchestrator.sweeps.results import objective
from orchestrator.terminal import RunProgress
from orchestrator.training.context import RunContext
from orchestrator.training.run import train

TRIAL_PATIENCE_S = 60.0
"""How long a trial waits for the process of a killed sweep to release its folder."""

NO_VALUE = -1e9
"""What Tune is told where the metric is not defined: schedulers and searchers need a number, and nothing is worse."""


@dataclass(frozen=True)
class TrialRunner:
    """Turns what Tune hands to a trial into a run, and trains it."""

    plan: Plan
    nodes: list[Resources]
    """The cluster, as the placement group was asked for."""
    tags: dict[str, str]
    """Of every run's MLflow run: its parent and its sweep."""

    def member(self, config: Mapping[str, Any]) -> Member:
        """The run that Tune's `config` means: one of the plan by name, or a point that Optuna proposes."""
        sweep = self.plan.sweep
        if "member" in config:
            return next(
                member for member in [*self.plan.trunks, *self.plan.trials] if member.name == config["member"]
            )
        return self.plan.trial(config["point"], sweep.seeds[config.get(TRIAL_INDEX, 0)])

    def resources(self, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        # The first bundle is the driver's own.
        return tune.PlacementGroupFactory(
            [{}, *bundles_for(self.member(config).config, self.nodes).all], strategy="PACK"
        )

    def __call__(self, config: dict[str, Any]) -> None:
        member = self.member(config)
        if member.config.tracking.uri is None:
            os.environ["MLFLOW_TRACKING_URI"] = (
                self.plan.tracking_uri
            )  # the sweep's, on whatever node this is
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
            self._note_branch(folder, context.trunk, member)
        with (folder / "log.txt").open("a") as log:
            console = Console(file=log, width=160, highlight=False)
            try:
                outcome = train(
                    member.config, RunProgress(member.name, member.config.run.steps, 0, console), context
                )
            except LaserError as error:
                if isinstance(error, PoolError) or isinstance(error.__cause__, RayError | OSError):
                    raise  # an accident: Tune tries again
                tune.report({"step": 0, "objective": NO_VALUE, "refused": str(error)})
                return
        report(outcome.summary["steps"], outcome.summary["trained"] or {}, final=True)

    def _trunk_folder(self, member: Member) -> Path | None:
        return self.plan.folder / "trunks" / member.trunk if member.trunk else None

    def _note_branch(self, folder: Path, trunk: Path, member: Member) -> None:
        branch = {
            "trunk": os.path.relpath(trunk, folder),
            "step": member.config.loss.reasoning_warmup_steps,
            "trunk_run_id": saved_run_id(trunk),
        }
        write_atomically(folder / "branch.json", json.dumps(branch, indent=2) + "\n")


def tags_of(member: Member, plan: Plan, common: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run's MLflow run: its parent, and what it is to the others."""
    tags = {**common, "laser.kind": "trunk" if member.is_trunk else "branch" if member.trunk else "trial"}
    if member.trunk:
        tags |= {
            "laser.trunk": member.trunk,
            "laser.branch_step": str(member.config.loss.reasoning_warmup_steps),
        }
        tags |= {"laser.trunk_run_id": saved_run_id(plan.folder / "trunks" / member.trunk) or "not known yet"}
    return tags
