"""The driver waits here: pools run their tasks, and the ranks their calls, while it waits for any of them.

In: pools with tasks, and refs of other calls. Out: values, by each task's callback or from `finished`. Every
wait runs all tasks of its pools, so batches that are generated ahead advance while the driver waits for an
evaluation, for verdicts or for the ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from orchestrator.pools.pool import Pool, Task

CHECK_EVERY_S = 30.0
"""How often a wait checks that each pool still has a ready worker."""


def finished(*pools: Pool) -> Iterator[tuple[Pool, Task, Any]]:
    """Run the tasks of all pools: yields each without a callback when it ends, until none of these is left.

    The caller may submit tasks while it iterates. Raises what `Pool.settle` and `Pool.check_alive` raise.
    """
    while any(pool.owes_values for pool in pools):
        yield from _wait(pools)[0]


def run_until(done: Callable[[], bool], *pools: Pool) -> None:
    """Run the tasks of all pools until `done()`, which callbacks of tasks make true.

    Raises:
        RuntimeError: No task is left, and `done()` is still false.
        PoolError and Ray's errors: As `Pool.settle` and `Pool.check_alive`.
    """
    while not done():
        if not any(pool.outstanding for pool in pools):
            raise RuntimeError("no task is left that could end this wait")
        _wait(pools)


def run_while(refs: Sequence[ObjectRef], *pools: Pool) -> None:
    """Run the tasks of all pools until every one of `refs` is there, or one of their calls has failed.

    Raises:
        PoolError and Ray's errors: As `Pool.settle` and `Pool.check_alive`. An error of `refs` is not raised.
    """
    missing = list(refs)
    while missing:
        _, ready = _wait(pools, missing)
        try:
            ray.get(ready)
        except RayError:
            return  # the other calls may wait for the failed one for ever
        missing = [ref for ref in missing if ref not in ready]


def _wait(
    pools: Sequence[Pool], refs: Sequence[ObjectRef] = ()
) -> tuple[list[tuple[Pool, Task, Any]], list[ObjectRef]]:
    """Wait for one end of a task or a call, or for a worker's change of state.

    Returns:
        The tasks without callback that ended, and those of `refs` that are there.
    """
    pool_of = {ref: pool for pool in pools for ref in pool.watched()}
    ready, _ = ray.wait([*refs, *pool_of], num_returns=1, timeout=CHECK_EVERY_S)
    ended = []
    for ref in ready:
        if ref in pool_of and (settled := pool_of[ref].settle(ref)):
            task, value = settled
            if task.done is None:
                ended.append((pool_of[ref], task, value))
            else:
                task.done(task, value)
    if not ready:
        for pool in pools:
            if pool.outstanding:
                pool.check_alive()
    return ended, [ref for ref in ready if ref not in pool_of]
