"""Training between the start of the pools and their end, through the deaths of learner ranks.

In: a prepared run, the cluster's nodes and a tracker. Out: the run's summary.
"""

import contextlib
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayError

from orchestrator.cluster.nodes import Resources
from orchestrator.config.training import RunConfig
from orchestrator.pools.hung import HungWorker
from orchestrator.pools.task import PoisonousTask
from orchestrator.pools.training import Pools
from orchestrator.pools.worker import cause_of_death
from orchestrator.storage.checkpoints import Checkpoints
from orchestrator.terminal import RunProgress
from orchestrator.tracking.tracker import Tracker
from orchestrator.training.context import RunContext
from orchestrator.training.divergence import Diverged
from orchestrator.training.dropping import drop_problem
from orchestrator.training.live_metrics import LiveMetrics
from orchestrator.training.loop import run_steps
from orchestrator.training.preparation import PreparedRun
from orchestrator.training.session import Session
from orchestrator.training.stopping import Stop
from orchestrator.training.summary import summary_of


def train_on_pools(
    config: RunConfig,
    checkpoints: Checkpoints,
    prepared: PreparedRun,
    nodes: list[Resources],
    tracker: Tracker,
    progress: RunProgress,
    context: RunContext,
) -> dict[str, Any]:
    """Start the pools on these nodes, train, stop the pools. Returns the run's summary."""
    names = f"rollout (vLLM), verification ({config.verification.verifier_name}), learning (DeepSpeed ZeRO-3)"
    progress.say(f"starting the pools: {names}")
    stop = Stop(progress.say)
    with contextlib.ExitStack() as stack:
        if not context.in_trial:
            stack.enter_context(stop.on_signals())
        with stop.interruptible():
            pools = Pools(config, prepared.tokens, context.place(config, lambda: nodes), context.in_trial)
            stack.callback(pools.stop)
        live = stack.enter_context(LiveMetrics(config, pools))
        session = Session(config, prepared, pools, tracker, progress, live, stop, context, checkpoints)
        try:
            return _train_through_failures(session)
        except Diverged as error:
            tracker.log_summary(summary_of(session, None) | {"status": "failed", "error": str(error)})
            raise


def _train_through_failures(session: Session) -> dict[str, Any]:
    """Go to the newest checkpoint and train. When a rank dies or its trajectories are lost, restart all ranks
    and do it again. When workers die on a problem, draw the steps that are not finished again without it.

    The other pools restart their own workers.
    """
    failure: RayError | None = None
    rewinds = True
    while True:
        try:
            with session.stop.interruptible():  # nothing is unsaved
                if failure is not None:
                    session.pools.restart_learners(failure)
                if rewinds:
                    session.rewind()
            return run_steps(session)
        except PoisonousTask as error:
            failure, rewinds = None, False
            drop_problem(session, error)
        except (RayActorError, ObjectLostError) as error:
            failure, rewinds = error, True
            session.note(f"restarting the ranks after step {session.step}: {_cause(error)}")


def _cause(error: RayError) -> str:
    """Why the ranks are restarted."""
    if isinstance(error, HungWorker):
        return str(error)
    if isinstance(error, RayActorError):
        return f"a learner rank died: {cause_of_death(error)}"
    return "a node died with the ranks' input"
