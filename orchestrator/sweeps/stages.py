"""The stages of a sweep on Ray Tune, which places, schedules, prunes and retries their runs."""

import functools
import logging
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher

from orchestrator.cluster.bundles import Bundles, bundles_for
from orchestrator.cluster.nodes import connect
from orchestrator.sweeps.environment import configure_tune
from orchestrator.sweeps.optuna_search import PointSearch
from orchestrator.sweeps.plan import Member, SweepPlan
from orchestrator.sweeps.progress import SweepProgress
from orchestrator.sweeps.results import Ledger
from orchestrator.sweeps.trial import TrialRunner
from orchestrator.sweeps.watch import Interruption, LedgerWatch, RoomWatch

NO_LIMIT = 10**9
"""Steps at which ASHA itself would end a trial: a trial ends at its own run.steps."""


class Stages:
    """Trains runs of a sweep, one stage after the other.

    Args:
        tags: Tags of every run's MLflow run.
        on_change: Called after each change of the ledger.

    Attributes:
        ended: Names of the runs that have ended so far.
    """

    def __init__(
        self,
        plan: SweepPlan,
        ledger: Ledger,
        progress: SweepProgress,
        tags: Mapping[str, str],
        on_change: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.ledger = ledger
        self.progress = progress
        self.tags = dict(tags)
        self.on_change = on_change
        self.ended: set[str] = set()

    def fit(self, stage: str, members: list[Member] | None) -> None:
        """Train these runs, or, for None, the trials that Optuna proposes.

        Args:
            stage: Name of the folder for Tune's own files, such as `trials`.

        Raises:
            RunError: The cluster had no room for any of them within `wait_s`.
            KeyboardInterrupt: After Ctrl-C, when the trials have been stopped.
            RayError, TuneError, OSError: Ray, Tune or the disk failed.
        """
        storage = self.plan.folder / "tune"
        shutil.rmtree(storage / stage, ignore_errors=True)  # an earlier call's files, which nothing reads
        searcher, samples = (None, 1) if members is not None else self._optuna()
        if samples == 0:
            return
        sweep, runner = self.plan.sweep, self._runner
        watch = LedgerWatch(self.ledger, runner.member, self.on_change, self.progress)
        interruption = Interruption()
        tuner = tune.Tuner(
            tune.with_resources(lambda config: runner(config), runner.resources),
            param_space={}
            if members is None
            else {"member": tune.grid_search([member.name for member in members])},
            tune_config=tune.TuneConfig(
                metric="objective",
                mode="max",
                search_alg=searcher,
                scheduler=self._asha() if stage == "trials" else None,
                num_samples=samples,
                max_concurrent_trials=sweep.concurrency if searcher is None else None,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name=stage,
                storage_path=str(storage),
                failure_config=tune.FailureConfig(max_failures=sweep.retries),
                callbacks=[
                    interruption,
                    watch,
                    RoomWatch(self._bundles, sweep.wait_s, self.progress.say),
                ],
                verbose=0,
            ),
        )
        with interruption.on_signals():
            tuner.fit()
        self.ended |= watch.ended

    @functools.cached_property
    def _runner(self) -> TrialRunner:
        """What Tune runs. The first access joins the cluster, or starts Ray."""
        configure_tune()
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # LedgerWatch reports the failures
        return TrialRunner(self.plan, connect(), self.tags)

    def _bundles(self, config: Mapping[str, Any]) -> Bundles:
        return bundles_for(self._runner.member(config).config, self._runner.nodes)

    def _asha(self) -> ASHAScheduler | None:
        asha = self.plan.sweep.asha
        if asha is None:
            return None
        return ASHAScheduler(
            time_attr="step",
            grace_period=asha.grace_steps,
            reduction_factor=asha.reduction_factor,
            max_t=NO_LIMIT,
        )

    def _optuna(self) -> tuple[Searcher, int]:
        """A searcher that knows the results of earlier calls, and the number of trials it will propose."""
        sweep = self.plan.sweep
        search = PointSearch(self.plan, self.ledger)
        searcher: Searcher = Repeater(search, repeat=len(sweep.seeds)) if len(sweep.seeds) > 1 else search
        if sweep.concurrency is not None:
            searcher = ConcurrencyLimiter(searcher, max_concurrent=sweep.concurrency)
        return searcher, search.left * len(sweep.seeds)
