"""Drops a problem on which engines or verifiers die, so that a run ends well and a resume does not meet it.

In: the task that is to blame. Out: a row in the run's `dropped.jsonl`, and a session that draws its next
steps again without the problem: the samples of unfinished steps are thrown away, as when the run resumes.
"""

from orchestrator.messages.problems import Problem
from orchestrator.pools.task import PoisonousTask
from orchestrator.storage.dropped import add_dropped
from orchestrator.training.session import Session


def drop_problem(session: Session, error: PoisonousTask) -> None:
    """Drop the problem of a training step, or of the calibration of c_ref, which is step 0.

    Raises:
        PoisonousTask: It belongs to no step: a held-out problem is missed in the figures, so a person has to
            take it out of the data.
    """
    task = error.task
    if "step" not in task.labels:
        raise error
    session.pools.abandon_tasks()
    problem: Problem = task.context[1].problem
    row = {
        "id": problem.id,
        "source": problem.source,
        "problem": problem.text if len(problem.messages) == 1 else [*problem.messages],
        "answer": problem.reference,
        "step": task.labels["step"],
        "pool": error.pool,
        "method": task.method,
        "deaths": task.deaths,
        "cause": str(error.cause),
    }
    path = add_dropped(session.config.folder, dict(problem.fields) | row)
    session.problems.drop(problem)
    session.at_start = session.step == 0
    where = f"step {task.labels['step']}" if task.labels["step"] else "the calibration of c_ref"
    session.note(
        f"problem {problem.id} ({problem.where}) is dropped: {task.deaths} workers of the {error.pool} pool "
        f"died on it in {where}. It is kept in {path}"
    )
