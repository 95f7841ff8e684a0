"""The batches that a run learns from, in order. Generation runs a bounded number of steps ahead of learning.

In: a session, whose problems and pools it uses. Out: each step that is left, with its checked samples.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from orchestrator.pools.collect import Batch, Collection
from orchestrator.pools.events import run_until
from orchestrator.training.session import Session
from orchestrator.training.stream_plan import StreamPlan
from orchestrator.training.streaming import RankRounds, lack_of_memory
from orchestrator.training.train_batch import estimate_advantages


def batches(session: Session, ahead: int) -> Iterator[tuple[int, Batch]]:
    """Each step that is left, with its batch.

    When the caller asks for the batch of step s, the engines have the weights of step s - 1, and the problems
    up to step s + `ahead` are given to them. So no token is more than `ahead` updates older than the weights
    that learn from it, and no more than `ahead` + 1 batches exist, however far the ranks fall behind.
    A batch has all problems of its step, however long they take, so that short answers are not preferred.

    Raises:
        StopRequested: Someone asked the run to stop.
    """
    rollouts, verifiers, clock = session.pools.rollouts, session.pools.verifiers, session.clock
    given: deque[Collection] = deque()
    """The newest batches, the oldest of them first."""
    next_step, last_step = session.step + 1, session.config.run.steps
    counted_until = 0.0
    """Until when the engines' time counts for the batches before; a batch may end before an older one."""

    def complete_next() -> None:
        nonlocal next_step
        while next_step <= min(step + ahead, last_step):
            groups = session.problems.draw(next_step)
            given.append(Collection(rollouts, verifiers, groups, {"step": next_step}))
            next_step += 1
        if not streams or given[0].is_complete:
            run_until(lambda: given[0].is_complete, rollouts, verifiers)
            return
        session.rounds = _rounds(session, step, given[0])
        run_until(lambda: given[0].is_complete, rollouts, verifiers, session.rounds)

    streams = _streams(session)
    for step in session.steps():
        clock.start("step")
        session.rounds = None
        with clock("wait"):
            session.generate(complete_next)
        done = given.popleft()
        clock.seconds["rollout"] = max(0.0, done.last_generated - max(done.started, counted_until))
        clock.seconds["verify"] = done.last_checked - done.last_generated
        counted_until = max(counted_until, done.last_generated)
        batch = done.batch()
        session.live.checked(batch.verdicts)
        yield step, batch


def _streams(session: Session) -> bool:
    """Whether the ranks learn while engines generate; a note says why not if they were to."""
    if not session.config.learning.stream:
        return False
    if problem := lack_of_memory(session.config, session.pools):
        session.note(problem)
    return problem is None


def _rounds(session: Session, step: int, collection: Collection) -> RankRounds:
    """The rounds of a step, with the whole batch's functions for each group's advantages."""
    config = session.config

    def estimate(group: Batch) -> tuple[Float32[np.ndarray, "samples"], Float32[np.ndarray, "samples"]]:
        c_ref = session.constant_reference(group)
        return estimate_advantages(config, group, session.scores(group, c_ref), step), c_ref

    return RankRounds(StreamPlan(config, step), session.pools, collection, estimate)
