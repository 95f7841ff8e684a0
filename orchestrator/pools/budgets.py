"""How many workers of a pool may die: work that the pool does gives deaths back.

In: deaths with their errors, and amounts of work. Out: an error once deaths come faster than work, with the
cause of the first of them. So a long run bears any number of faults, and a broken environment ends it soon.
"""

from collections import deque

from orchestrator.errors import PoolError


class DeathBudget:
    """The deaths that a pool bears.

    Args:
        who: Whose deaths, for the message, such as "workers of the rollout pool".
        limit: Deaths that the pool bears while no work is done.
        work_per_death: Amount of work that gives one death back.
    """

    def __init__(self, who: str, limit: int = 10, work_per_death: float = 100.0) -> None:
        self.who = who
        self.limit = limit
        self.work_per_death = work_per_death
        self._deaths: deque[BaseException] = deque()
        """Those that are not given back, the oldest first."""
        self._credit = 0.0
        """Part of the next death that work has given back already."""

    def work(self, amount: float = 1.0) -> None:
        """Work is done: the oldest deaths are given back."""
        self._credit += amount / self.work_per_death
        while self._deaths and self._credit >= 1.0:
            self._deaths.popleft()
            self._credit -= 1.0
        if not self._deaths:
            self._credit = 0.0

    def spend(self, error: BaseException) -> None:
        """A worker has died.

        Raises:
            PoolError: The budget is spent; it comes from the error of the oldest death.
        """
        self._deaths.append(error)
        if len(self._deaths) > self.limit:
            first = self._deaths[0]
            raise PoolError(
                f"{self.who} died {len(self._deaths)} times with too little work between "
                f"(faults.max_deaths={self.limit}); the first cause: {first}"
            ) from first
