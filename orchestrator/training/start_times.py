"""How long a run took to start: from its command to pools that can work, and to the first sampled token."""

import time
from collections.abc import Callable

from orchestrator.pools.training import Pools


class StartTimes:
    """Seconds of a start, measured once for each command.

    Args:
        started_at: When the command started, on the clock of `time.monotonic`.
        say: Receives a line when the times are known.
    """

    def __init__(self, started_at: float, say: Callable[[str], None]) -> None:
        self._started_at = started_at
        self._say = say
        self._taken = False
        self.pools_s: float | None = None
        """Until all engines, verifiers and ranks could work."""
        self.first_token_s: float | None = None
        """Until an engine had sampled a token."""

    def pools_ready(self) -> None:
        """All pools can work now."""
        if self.pools_s is None:
            self.pools_s = time.monotonic() - self._started_at

    def sampled(self, pools: Pools) -> None:
        """Engines have sampled: take the time of the first token, and say both times, once."""
        if self.first_token_s is not None or self.pools_s is None:
            return
        if (age := pools.first_token_age()) is None:
            return
        self.first_token_s = time.monotonic() - age - self._started_at
        self._say(f"pools ready after {self.pools_s:.1f} s, first token after {self.first_token_s:.1f} s")

    def take_metrics(self) -> dict[str, float]:
        """The times as metrics, for the first step that is recorded after they are known; then nothing."""
        if self.pools_s is None or self.first_token_s is None or self._taken:
            return {}
        self._taken = True
        return {"time/start": self.first_token_s, "time/start_pools": self.pools_s}
