"""What a sweep notes while Ray Tune runs: reports, retries, ends, a cluster without room, and Ctrl-C.

Tune's trials are plain objects with the attributes that the callbacks read. A real trial takes a cluster, and
would not fail or wait when asked.
"""

import io
import os
import signal
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console

from orchestrator.cluster.bundles import bundles_for
from orchestrator.errors import RunError
from orchestrator.sweeps import watch as watching
from orchestrator.sweeps.plan import Member
from orchestrator.sweeps.progress import SweepProgress
from orchestrator.sweeps.results import Ledger, State
from orchestrator.sweeps.watch import Interruption, LedgerWatch, RoomWatch
from tests.settings import configure

STEPS = 6


def tune_trial(name: str, status: str = TuneTrial.RUNNING) -> SimpleNamespace:
    return SimpleNamespace(
        trial_id=f"id-{name}", config={"member": name}, status=status, last_result={}, pickled_error_file=None
    )


class Tune:
    """Calls a watch as Ray Tune's loop does."""

    def __init__(self, watch: LedgerWatch, trial: SimpleNamespace) -> None:
        self.watch, self.trial = watch, trial

    def start(self) -> None:
        self.watch.on_trial_start(0, [self.trial], self.trial)
        self.watch.on_step_end(0, [self.trial])

    def report(self, step: int, accuracy: float, final: bool = False) -> None:
        self.trial.last_result = {"step": step, "figures": {"accuracy": accuracy}, "final": final}
        self.watch.on_trial_result(0, [self.trial], self.trial, self.trial.last_result)
        self.watch.on_step_end(0, [self.trial])

    def fail(self, error: Exception, is_last: bool = False) -> None:
        self.trial.get_error = lambda: error
        call = self.watch.on_trial_error if is_last else self.watch.on_trial_recover
        call(0, [self.trial], self.trial)
        self.watch.on_step_end(0, [self.trial])

    def complete(self) -> None:
        self.watch.on_trial_complete(0, [self.trial], self.trial)
        self.watch.on_step_end(0, [self.trial])


@pytest.fixture
def screen():
    return Console(width=120, record=True, force_terminal=False, file=io.StringIO())


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path, "sweep", ["loss.alpha"], "accuracy", "test")


@pytest.fixture
def watch(ledger, screen):
    def member(config):
        run = SimpleNamespace(steps=STEPS)
        return Member(config["member"], {"loss.alpha": 0.1}, 0, SimpleNamespace(run=run))

    saved = []
    made = LedgerWatch(ledger, member, lambda: saved.append(ledger.save()), SweepProgress("sweep", screen))
    made.saved = saved
    return made


def test_an_evaluation_that_a_resumed_trial_makes_up_reaches_the_ledger_once(watch, ledger, screen):
    """The trial dies after step 4 and resumes from an earlier checkpoint, so it reports step 4 again."""
    tune = Tune(watch, tune_trial("a"))
    tune.start()
    tune.report(2, 0.25)
    tune.report(4, 0.5)
    tune.fail(RuntimeError("the node is gone\nframes"))
    tune.start()
    tune.report(4, 0.5)
    trial = ledger.trials["a"]
    assert (trial.status, trial.step, trial.objective) == (State.RUNNING, 4, 0.5)
    tune.report(6, 0.75)
    tune.report(6, 0.75, final=True)
    tune.complete()
    assert (trial.status, trial.step, trial.objective) == (State.FINISHED, 6, 0.75)
    assert watch.ended == {"a"}
    lines = [line.strip() for line in screen.export_text().splitlines()]
    assert [line for line in lines if line.startswith("a: step")] == [
        f"a: step {step}/{STEPS}  objective {objective:.3f}"
        for step, objective in ((2, 0.25), (4, 0.5), (6, 0.75))
    ]
    assert "a failed and resumes from its last checkpoint: the node is gone" in lines


def test_an_evaluation_that_was_never_reported_reaches_the_ledger_after_the_resume(watch, ledger):
    tune = Tune(watch, tune_trial("a"))
    tune.start()
    tune.fail(RuntimeError("killed after the checkpoint of step 4"))
    tune.start()
    tune.report(4, 0.5)
    assert (ledger.trials["a"].step, ledger.trials["a"].metrics) == (4, {"accuracy": 0.5})


def test_how_a_trial_ended_is_written_and_saved(watch, ledger, screen):
    pruned, refused, failed = (Tune(watch, tune_trial(name)) for name in ("pruned", "refused", "failed"))
    for tune in (pruned, refused, failed):
        tune.start()
    pruned.report(2, 0.1)
    pruned.complete()
    refused.trial.last_result = {"step": 0, "refused": "loss.c_ref: no"}
    refused.complete()
    before = len(watch.saved)
    failed.fail(OSError("no space left on device"), is_last=True)
    assert len(watch.saved) == before + 1
    states = {trial.name: (trial.status, trial.error) for trial in ledger.trials.values()}
    assert states == {
        "pruned": (State.PRUNED, None),
        "refused": (State.FAILED, "loss.c_ref: no"),
        "failed": (State.FAILED, "no space left on device"),
    }
    assert "failed: failed at step 0/6  no space left on device" in screen.export_text()


def test_nothing_is_saved_when_nothing_has_changed(watch):
    tune = Tune(watch, tune_trial("a"))
    tune.start()
    count = len(watch.saved)
    watch.on_step_end(0, [tune.trial])
    assert len(watch.saved) == count


@pytest.fixture
def room(monkeypatch, load_run):
    """A watch for room with a fake clock, and fake free resources in place of another program."""
    said, now, free = [], [1000.0], {"CPU": 0.5}
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(watching, "ray", SimpleNamespace(available_resources=lambda: free))
    bundles = bundles_for(load_run, [{"CPU": 8.0}])
    watch = RoomWatch(lambda config: bundles, 60.0, said.append)

    def after(seconds: float, *trials: SimpleNamespace) -> None:
        now[0] += seconds
        watch.on_step_end(0, list(trials))

    return SimpleNamespace(after=after, said=said, free=free)


@pytest.fixture
def load_run(tmp_path):
    return configure(run={"name": "a", "steps": STEPS, "dir": str(tmp_path)})


def test_a_sweep_without_room_says_so_once_and_gives_up(room):
    waiting = tune_trial("a", TuneTrial.PENDING)
    for seconds in (10, 15, 15):
        room.after(seconds, waiting)
    shortage = "a trial needs 3 CPUs, and the cluster has 0.5 CPUs and 0 GPUs free: other work holds the rest"
    assert room.said == [f"waiting: {shortage}"]
    with pytest.raises(RunError, match=r"a trial needs 3 CPUs.*gave up after 60 s \(wait_s\)"):
        room.after(30, waiting)


def test_a_running_trial_or_free_resources_end_the_waiting(room):
    waiting = tune_trial("a", TuneTrial.PENDING)
    room.after(50, waiting)
    room.after(50, waiting, tune_trial("b"))
    room.after(50, waiting)
    room.free["CPU"] = 3.0
    room.after(50, waiting)
    room.free["CPU"] = 0.0
    room.after(50, waiting)
    assert len(room.said) == 3, "the time without a trial starts again, and so it never comes to wait_s"


def interrupt(interruption: Interruption) -> None:
    """Ctrl-C in a step of Tune's loop."""
    with interruption.on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        interruption.on_step_end(0, [])


def test_ctrl_c_ends_tunes_loop_by_an_error_of_a_callback():
    interruption = Interruption()
    interruption.on_step_end(0, [])
    with pytest.raises(KeyboardInterrupt):
        interrupt(interruption)
    assert interruption.requested


def test_a_second_ctrl_c_does_not_wait_for_tune():
    interruption = Interruption()
    interruption.requested = True
    interruption.on_step_end = lambda *arguments: pytest.fail("the signal did not interrupt")
    with pytest.raises(KeyboardInterrupt):
        interrupt(interruption)


def test_other_errors_are_not_taken_for_an_interruption():
    with pytest.raises(ValueError, match="broken"), Interruption().on_signals():
        raise ValueError("broken")
