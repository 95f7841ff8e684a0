"""How to split devices between engines and learner, from what a run has measured; at staleness 0 the two take turns.

In: a run's folder (`config.yaml`, `metrics.jsonl`) and the configuration whose GPUs, or without GPUs whose CPUs, are to be split. Out: a
`Sizing`: pool sizes, each with the seconds that a step would take. The formulas are derived in docs/cluster.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from orchestrator.config.schema import changed_settings
from orchestrator.config.training import RunConfig, load_config
from orchestrator.errors import ConfigError
from orchestrator.storage.journal import read_events

RECENT_STEPS = 20
"""Medians are over the newest steps: responses grow while a model trains, and a resumed run may have other pools than before."""
FEWEST_STEPS = 3
LAST_CHECK_SHARE = 0.05
"""Verification that ends so little later than generation keeps up: the last sample is checked after it, however many workers there are."""
SIZES = (
    "rollout.num_engines", "rollout.colocate", "rollout.cpus", "rollout.resources", "learning.num_ranks", "learning.cpus_per_rank",
    "learning.resources",
)  # fmt: skip
"""Settings of these sections that a measurement is carried over from; the others change what a step costs."""


@dataclass(frozen=True)
class Work:
    """What one step costs: device-seconds of either phase, which more devices share perfectly, and seconds that none shortens."""

    rollout: float
    learning: float
    fixed: float

    def seconds(self, engine_devices: float, learner_devices: float) -> float:
        """T = a / e + b / l + h: seconds a step on so many devices each, which may be the same ones taking turns."""
        return self.rollout / engine_devices + self.learning / learner_devices + self.fixed


@dataclass(frozen=True)
class Devices:
    """What an engine, with its tensor-parallel ranks, and a learner rank need each, in GPUs or CPUs (`kind`)."""

    kind: str
    engine: float
    rank: float


@dataclass(frozen=True)
class Layout:
    """Pool sizes and the seconds that a step takes with them."""

    name: str
    engines: int
    ranks: int
    devices: float
    rollout_s: float
    learn_s: float
    step_s: float
    without_handover: bool
    """Whether taking turns costs seconds on top, which no run has measured."""
    verifiers: int
    """Enough of them to keep up."""


@dataclass(frozen=True)
class Measured:
    """Medians of a run's newest steps, in seconds. `fixed` is what generation and learning leave of a step."""

    config: RunConfig
    steps: int
    rollout: float
    verify: float
    learn: float
    fixed: float

    def work(self) -> Work:
        """Raises ConfigError where engines and learner are on different kinds of devices."""
        devices = devices_of(self.config)
        rollout, learning = self.config.rollout, self.config.learning
        return Work(
            self.rollout * rollout.num_engines * devices.engine,
            self.learn * learning.num_ranks * devices.rank,
            self.fixed,
        )


@dataclass(frozen=True)
class Sizing:
    """What a measured run says of other pool sizes on `total` devices."""

    measured: Measured
    devices: Devices
    total: float
    layouts: tuple[Layout, ...]
    turn_budget_s: float | None
    """Seconds a step that handing over may take, both ways together, before taking turns on all devices is slower than the best split.
    None where one of the two is impossible, or the measured run took turns itself and its hand-over is in `fixed`."""
    warnings: tuple[str, ...]


def size(config: RunConfig, folder: Path) -> Sizing:
    """Size the pools of `config` by the run in `folder`.

    Raises:
        ConfigError: No such run, too few steps, or engines and learner, or the run and `config`, on different kinds of devices.
    """
    measured = measure(folder)
    work, devices, before = measured.work(), devices_of(config), measured.config
    if devices_of(before).kind != devices.kind:
        raise ConfigError(
            f"{folder}: was measured on {devices_of(before).kind}s, and says nothing of {devices.kind}s; measure a run there"
        )
    total = all_devices(config)

    def layout(name: str, engines: int, ranks: int, turns: bool) -> Layout:
        engine_devices, learner_devices = engines * devices.engine, ranks * devices.rank
        rollout, learn = work.rollout / engine_devices, work.learning / learner_devices
        together = max(engine_devices, learner_devices) if turns else engine_devices + learner_devices
        enough = enough_verifiers(before.verification.num_workers, measured.rollout, measured.verify, rollout)
        unmeasured = turns and not before.rollout.colocate
        return Layout(
            name, engines, ranks, together, rollout, learn, rollout + learn + work.fixed, unmeasured, enough
        )

    def own(config: RunConfig) -> tuple[int, int, bool]:
        return config.rollout.num_engines, config.learning.num_ranks, config.rollout.colocate

    layouts = [layout("measured", *own(before))]
    if own(config) != own(before):
        layouts.append(layout("this configuration", *own(config)))
    split, turns = best_split(work, total, devices), taking_turns(total, devices)
    if split is not None:
        layouts.append(layout("best split", *split, False))
    if turns is not None:
        layouts.append(layout("taking turns", *turns, True))
    budget = None
    if split is not None and turns is not None and layouts[-1].without_handover:
        budget = layouts[-2].step_s - layouts[-1].step_s
    return Sizing(measured, devices, total, tuple(layouts), budget, tuple(_warnings(folder, config, devices)))


def measure(folder: Path) -> Measured:
    """The medians of a run's newest steps.

    Raises:
        ConfigError: There is no run, or it has too few steps to say anything.
        RunError: Its journal is damaged.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise ConfigError(
            f"{folder}: no run here (no config.yaml); name a run's folder, such as runs/quickstart"
        )
    config = load_config(saved)
    steps = [event["values"] for event in read_events(folder) if event["event"] == "step"][-RECENT_STEPS:]
    if len(steps) < FEWEST_STEPS:
        raise ConfigError(
            f"{folder}: {len(steps)} steps are measured, and {FEWEST_STEPS} are needed; train a few first, "
            "such as run.steps=5 run.name=measure"
        )

    def seconds(key: str) -> float:
        return median(step[key] for step in steps)

    fixed = median(step["time/step"] - step["time/rollout"] - step["time/learn"] for step in steps)
    return Measured(
        config,
        len(steps),
        seconds("time/rollout"),
        seconds("time/verify"),
        seconds("time/learn"),
        max(0.0, fixed),
    )


def devices_of(config: RunConfig) -> Devices:
    """What one engine and one rank need. Raises ConfigError where one is on GPUs and the other is not."""
    rollout, learning = config.rollout, config.learning
    if (rollout.gpus > 0) != (learning.gpus_per_rank > 0):
        raise ConfigError(
            f"rollout.gpus={rollout.gpus:g} and learning.gpus_per_rank={learning.gpus_per_rank:g}: engines and learner share no kind of "
            "device, so there is nothing to split between them"
        )
    if rollout.gpus > 0:
        return Devices("GPU", rollout.gpus * rollout.tensor_parallel, learning.gpus_per_rank)
    return Devices("CPU", rollout.cpus, learning.cpus_per_rank)


def all_devices(config: RunConfig) -> float:
    """GPUs, or without GPUs CPUs, of engines and learner together."""
    devices = devices_of(config)
    learner = config.learning.num_ranks * devices.rank
    return learner if config.rollout.colocate else learner + config.rollout.num_engines * devices.engine


def best_split(work: Work, total: float, devices: Devices) -> tuple[int, int] | None:
    """Engines and ranks on devices of their own that make the shortest step; None where not even one of each fits.

    Without rounding: T(e) = a / e + b / (G - e) + h is least where dT/de = 0, at e / (G - e) = sqrt(a / b).
    """
    splits: Sequence[tuple[int, int]] = [
        (engines, _count(total - engines * devices.engine, devices.rank))
        for engines in range(1, _count(total, devices.engine) + 1)
    ]
    possible = [(engines, ranks) for engines, ranks in splits if ranks >= 1]
    return min(
        possible,
        key=lambda sizes: work.seconds(sizes[0] * devices.engine, sizes[1] * devices.rank),
        default=None,
    )


def taking_turns(total: float, devices: Devices) -> tuple[int, int] | None:
    """Engines and ranks when each phase has all devices (`rollout.colocate`); None where one of them does not fit."""
    engines, ranks = _count(total, devices.engine), _count(total, devices.rank)
    return (engines, ranks) if engines and ranks else None


def enough_verifiers(workers: int, rollout: float, verify: float, rollout_then: float) -> int:
    """Workers that keep up when generation takes `rollout_then` seconds.

    Checks overlap with generation, and took `verify` seconds longer. So `workers` have been busy for rollout + verify seconds at most,
    and that work, spread over `rollout_then` seconds, needs no more than this.
    """
    busy = rollout + (verify if verify > LAST_CHECK_SHARE * rollout else 0.0)
    return max(1, math.ceil(workers * busy / rollout_then - 1e-9))


def _count(total: float, each: float) -> int:
    """How many fit; fractions of a CPU add up only up to rounding."""
    return int(total / each + 1e-9)


def _warnings(folder: Path, config: RunConfig, devices: Devices) -> list[str]:
    changed = changed_settings(folder / "config.yaml", config)
    matter = [
        f"{key} ({change})"
        for key, change in changed.items()
        if key.startswith(("model.", "rollout.", "learning.")) and key not in SIZES
    ]
    warnings = []
    if matter:
        warnings.append(
            f"{folder} was measured with other settings, which change what a step costs: {', '.join(matter)}"
        )
    if min(devices.engine, devices.rank) < 1:
        warnings.append(
            f"pool sizes: engines and ranks reserve fractions of a {devices.kind} and share it already, so the times say little"
        )
    return warnings
