"""The kinds of faults: whom each strikes, and how long it lasts."""

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.chaos.scene import Scene, is_running

OUTAGE_S = 45.0
"""How long a node or its network is away: longer than Ray takes to call the node dead."""

CLOCK_STEP_S = 3600


class NothingToStrikeError(Exception):
    """The fault's victim is not there, because an earlier fault has it."""


def nothing(scene: Scene) -> None:
    """Of faults that end by themselves."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    kind: str
    """What `Scene.left_out` calls it; also for the table."""
    text: str
    strike: Callable[[Scene, random.Random], None]
    lasts_s: float = 0.0
    end: Callable[[Scene], None] = nothing


def _signal(victims: Sequence[psutil.Process], number: signal.Signals, dice: random.Random) -> None:
    victims = [
        victim for victim in victims if is_running(victim) and victim.status() != psutil.STATUS_STOPPED
    ]
    if not victims:
        raise NothingToStrikeError
    dice.choice(victims).send_signal(number)


def _on_actor(kind: str, number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    return lambda scene, dice: _signal(scene.actors(kind), number, dice)


def _on_child(kind: str, number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    return lambda scene, dice: _signal(scene.children(kind), number, dice)


def _on_node(program: str, number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    return lambda scene, dice: _signal(scene.daemons(program, scene.node), number, dice)


def _on_head(program: str, number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    def strike(scene: Scene, dice: random.Random) -> None:
        assert scene.cluster is not None
        _signal(scene.daemons(program, scene.cluster.nodes[0]), number, dice)

    return strike


def _resume_head(scene: Scene) -> None:
    assert scene.cluster is not None
    for process in scene.daemons("gcs_server", scene.cluster.nodes[0]):
        process.send_signal(signal.SIGCONT)


def _lose_node(scene: Scene, dice: random.Random) -> None:
    assert scene.cluster is not None
    if scene.node is None or scene.node not in scene.cluster.nodes:
        raise NothingToStrikeError
    scene.cluster.kill_node(scene.node)


def _on_driver(number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    def strike(scene: Scene, dice: random.Random) -> None:
        if scene.driver is None or scene.driver.poll() is not None:
            raise NothingToStrikeError
        scene.driver.send_signal(number)

    return strike


def _resume_driver(scene: Scene) -> None:
    if scene.driver is not None:
        scene.driver.send_signal(signal.SIGCONT)


def _on_mlflow(number: signal.Signals) -> Callable[[Scene, random.Random], None]:
    def strike(scene: Scene, dice: random.Random) -> None:
        if scene.mlflow is None:
            raise NothingToStrikeError
        root = psutil.Process(scene.mlflow.pid)
        for process in [root, *root.children(recursive=True)]:
            process.send_signal(number)

    return strike


def _resume_mlflow(scene: Scene) -> None:
    _on_mlflow(signal.SIGCONT)(scene, random.Random())


def _restart_mlflow(scene: Scene) -> None:
    assert scene.mlflow is not None
    scene.mlflow.wait()
    scene.start_mlflow()


def _cut(scene: Scene, dice: random.Random) -> None:
    if scene.network is None or scene.node is None:
        raise NothingToStrikeError
    scene.network.cut()


def _join(scene: Scene) -> None:
    assert scene.network is not None
    scene.network.join()
    if scene.node is None:
        scene.start_node()


def _join_and_restart(scene: Scene) -> None:
    assert scene.network is not None
    scene.network.join()
    scene.start_node()


def _step_clock(scene: Scene, dice: random.Random) -> None:
    if scene.clock is None:
        raise NothingToStrikeError
    scene.clock.set_to(CLOCK_STEP_S)


def _step_clock_back(scene: Scene) -> None:
    assert scene.clock is not None
    scene.clock.set_to(-CLOCK_STEP_S)


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
FAULTS = (
    Fault("engine-kill", "an engine is killed", _on_actor("RolloutWorker", KILL)),
    Fault("engine-stop", "an engine is stopped", _on_actor("RolloutWorker", STOP)),
    Fault("verifier-kill", "a verifier is killed", _on_actor("VerificationWorker", KILL)),
    Fault("verifier-stop", "a verifier is stopped", _on_actor("VerificationWorker", STOP)),
    Fault("child-kill", "a verifier's child is killed", _on_child("VerificationWorker", KILL)),
    Fault("child-stop", "a verifier's child is stopped", _on_child("VerificationWorker", STOP)),
    Fault("rank-kill", "a learner rank is killed", _on_actor("LearnerRank", KILL)),
    Fault("rank-stop", "a learner rank is stopped", _on_actor("LearnerRank", STOP)),
    Fault("driver-kill", "the driver is killed", _on_driver(KILL)),
    Fault("driver-stop", "the driver is stopped for 10 s", _on_driver(STOP), 10.0, _resume_driver),
    Fault("node", "a node is lost", _lose_node, OUTAGE_S, Scene.start_node),
    Fault("raylet-kill", "a node's raylet is killed", _on_node("raylet", KILL), OUTAGE_S, Scene.start_node),
    Fault("raylet-stop", "a node's raylet is stopped", _on_node("raylet", STOP), OUTAGE_S, Scene.start_node),
    Fault("head-kill", "the raylet of the driver's node is killed", _on_head("raylet", KILL)),
    Fault("gcs-stop", "Ray's head is stopped for 10 s", _on_head("gcs_server", STOP), 10.0, _resume_head),
    Fault("network-cut", "a node's network is away for 5 s", _cut, 5.0, _join),
    Fault("network-loss", f"a node's network is away for {OUTAGE_S:g} s", _cut, OUTAGE_S, _join_and_restart),
    Fault("disk", "the disk is full for 20 s", lambda scene, dice: scene.fill_disk(), 20.0, Scene.empty_disk),
    Fault("mlflow-kill", "the MLflow server is away for 20 s", _on_mlflow(KILL), 20.0, _restart_mlflow),
    Fault("mlflow-stop", "the MLflow server is stopped for 20 s", _on_mlflow(STOP), 20.0, _resume_mlflow),
    Fault("clock", "the driver's clock steps 1 h ahead, then 2 h back", _step_clock, 10.0, _step_clock_back),
)
"""Every kind once."""


def drawn(count: int, seed: int, kinds: Sequence[str], left_out: Sequence[str]) -> list[Fault]:
    """Faults in a random order: every kind once before any comes twice.

    Args:
        kinds: The kinds to draw from; all if it is empty.
        left_out: Kinds, or beginnings of them, that the machine cannot have.
    """
    possible = [
        fault
        for fault in FAULTS
        if (not kinds or fault.kind in kinds) and not any(fault.kind.startswith(kind) for kind in left_out)
    ]
    dice = random.Random(seed)
    faults: list[Fault] = []
    while len(faults) < count:
        faults += dice.sample(possible, len(possible))
    return faults[:count]
