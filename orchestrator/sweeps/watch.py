"""What a sweep does while Ray Tune runs one of its stages: keep the ledger, watch for room, end on Ctrl-C.

Each class is a callback of Tune. Tune counts an error in a trial's callback as a failure of that trial. So
these callbacks only take notes; files are read and written, and errors raised, at the end of Tune's step.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as TuneTrial

from orchestrator.cluster.bundles import Bundles, demand
from orchestrator.errors import RunError
from orchestrator.shown_text import safe_to_show
from orchestrator.sweeps.plan import Member
from orchestrator.sweeps.progress import SweepProgress
from orchestrator.sweeps.results import Ledger, State, Trial, Trunk
from orchestrator.training.stopping import handling_stops

LOOK_EVERY_S = 2.0
"""Seconds between two looks at the folders of running trials, and between two looks for room."""

BUSY_AFTER_S = 20.0
"""Seconds without a running trial after which the sweep says what it waits for."""


class _SweepCallback(Callback):
    """A callback of Tune that Tune does not store: a sweep resumes from its ledger."""

    def __reduce__(self) -> tuple[type[Callback], tuple]:
        return Callback, ()


class LedgerWatch(_SweepCallback):
    """Writes what Tune reports of its trials into the ledger, and shows it.

    Args:
        member_of: Returns the run that Tune's configuration of a trial stands for.
        on_change: Called at the end of each step of Tune in which a run has changed.

    Attributes:
        ended: Names of the runs that have ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        member_of: Callable[[Mapping[str, Any]], Member],
        on_change: Callable[[], None],
        progress: SweepProgress,
    ) -> None:
        self.ledger = ledger
        self.member_of = member_of
        self.on_change = on_change
        self.progress = progress
        self.ended: set[str] = set()
        self._runs: dict[str, Trial | Trunk] = {}
        """Runs by Tune's id of their trial."""
        self._just_ended: list[Trial | Trunk] = []
        self._changed = False
        self._last_look = 0.0

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._run(trial).status = State.RUNNING
        self._changed = True

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict, **info: Any
    ) -> None:
        run = self._run(trial)
        if isinstance(run, Trial) and "figures" in result:
            is_new = self.ledger.evaluated(run, result["step"], result["figures"])
            self._changed = True
            if is_new and not result["final"]:
                self.progress.evaluated(run)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        run, last = self._run(trial), trial.last_result
        if "refused" in last:
            run.status, run.error = State.FAILED, safe_to_show(last["refused"])
        else:
            run.status = State.FINISHED if last.get("final") else State.PRUNED
        self._just_ended.append(run)

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self.progress.say_plainly(
            f"{self._run(trial).name} failed and resumes from its last checkpoint: {_reason(trial)}"
        )

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        run = self._run(trial)
        run.status, run.error = State.FAILED, safe_to_show(_reason(trial))
        self._just_ended.append(run)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        ended, self._just_ended = self._just_ended, []
        for run in ended:
            self.ledger.look(run)
            self.ended.add(run.name)
            self.progress.ended(run, self.ledger)
        now = time.monotonic()
        if now - self._last_look > LOOK_EVERY_S:
            self._last_look = now
            for run in self._runs.values():
                if run.status is State.RUNNING:
                    self.ledger.look(run)
            self.progress.show(self.ledger)
        if ended or self._changed:
            self._changed = False
            self.on_change()

    def _run(self, trial: TuneTrial) -> Trial | Trunk:
        if trial.trial_id not in self._runs:
            self._runs[trial.trial_id] = self.ledger.run_of(self.member_of(trial.config))
        return self._runs[trial.trial_id]


class RoomWatch(_SweepCallback):
    """Says what a sweep waits for while other work holds the cluster's resources.

    Args:
        bundles_of: Returns what Tune's configuration of a trial needs.
        wait_s: Seconds without a running trial after which the sweep gives up.

    Raises:
        RunError: At the end of Tune's step, when `wait_s` has passed.
    """

    def __init__(
        self,
        bundles_of: Callable[[Mapping[str, Any]], Bundles],
        wait_s: float,
        say: Callable[[str], None],
    ) -> None:
        self.bundles_of = bundles_of
        self.wait_s = wait_s
        self.say = say
        self._last_active = time.monotonic()
        self._last_look = 0.0
        self._is_waiting = False

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        now = time.monotonic()
        if now - self._last_look <= LOOK_EVERY_S:
            return
        self._last_look = now
        shortage = self._shortage(trials)
        if shortage is None:
            self._last_active, self._is_waiting = now, False
            return
        waited_s = now - self._last_active
        if waited_s > self.wait_s:
            raise RunError(
                f"{shortage}. The sweep gave up after {self.wait_s:g} s (wait_s). Run the same command again "
                "when the cluster has room: it resumes"
            )
        if waited_s > BUSY_AFTER_S and not self._is_waiting:
            self._is_waiting = True
            self.say(f"waiting: {shortage}")

    def _shortage(self, trials: list[TuneTrial]) -> str | None:
        """What a waiting trial needs and what is free. None while a trial runs, none waits, or there is room.

        With room, the trial's placement group exists and its driver is about to start.
        """
        waiting = [trial for trial in trials if trial.status == TuneTrial.PENDING]
        if not waiting or any(trial.status == TuneTrial.RUNNING for trial in trials):
            return None
        bundles, free = self.bundles_of(waiting[0].config), ray.available_resources()
        if all(free.get(name, 0.0) + 1e-9 >= bundles.total(name) for name in ("CPU", "GPU")):
            return None
        return (
            f"a trial needs {demand(bundles)}, and the cluster has {free.get('CPU', 0):g} CPUs and "
            f"{free.get('GPU', 0):g} GPUs free: other work holds the rest"
        )


class Interruption(_SweepCallback):
    """Ends a stage after Ctrl-C or SIGTERM, so that all its trials are stopped.

    Tune stops its trials when a callback raises an error, but not when a signal interrupts Tune itself. So
    the first signal only sets a flag. A second signal interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle the signals while Tune runs.

        Raises:
            KeyboardInterrupt: After a signal, when Tune has stopped the trials.
        """
        try:
            with handling_stops(self._handle):
                yield
        except Exception:
            if self.requested:
                raise KeyboardInterrupt from None
            raise

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if self.requested:
            raise _Interrupted

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class _Interrupted(Exception):
    """Ends Tune's loop."""


def _reason(trial: TuneTrial) -> str:
    """The first line of the error that ended a trial, without the frames of Ray and Tune."""
    # Tune has just written this file on this machine. Tune's own getters read the copy that Tune makes later.
    path = trial.pickled_error_file
    error = (
        ray.cloudpickle.loads(Path(path).read_bytes())
        if path is not None and Path(path).exists()
        else trial.get_error()
    )
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, RayActorError):
        return "its driver died"
    lines = str(error).strip().splitlines()
    return next((line for line in lines if line.strip()), type(error).__name__)
