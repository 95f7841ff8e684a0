"""Pool sizes from measured times: how to split devices between the engines and the learner.

In: the folder of a run that has trained a few steps (`config.yaml`, `metrics.jsonl`), and the configuration
whose devices are to be split: its GPUs or, without GPUs, its CPUs. Out: a `Sizing`, which gives for each
layout the seconds that a step would take. At staleness 0 generation and learning alternate, so a layout may
also give all devices to both in turns; with `rollout.max_staleness` above 0 they overlap. docs/cluster.md
derives the formulas.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from orchestrator.config.schema import Mark, changed_settings, has_mark
from orchestrator.config.training import RunConfig, load_config
from orchestrator.errors import ConfigError
from orchestrator.storage.journal import StepEvent, read_events

RECENT_STEPS = 20
"""Medians are over the newest steps: responses grow during training, and a resumed run may have had other
pools."""
FEWEST_STEPS = 3
LAST_CHECK_SHARE = 0.05
"""The last sample is always checked after generation. Verification that ends later by at most this share of
the generation time therefore counts as keeping up."""
ROUNDING = 1e-9
"""Fractions of a CPU add up to whole numbers only within this."""
COST_SECTIONS = ("model.", "rollout.", "learning.")
"""Their settings change what a step costs, but for the sizes of the pools."""


@dataclass(frozen=True)
class DeviceWork:
    """What one step costs: device-seconds of each phase, and a fixed time in seconds."""

    rollout: float
    learning: float
    fixed: float
    overlaps: bool = False
    """Whether engines generate the next batch while ranks learn."""

    def seconds(self, engine_devices: float, learner_devices: float, in_turns: bool = False) -> float:
        """Seconds of a step: T = a / e + b / l + h, or T = max(a / e, b / l) + h where they overlap.

        Args:
            in_turns: Whether both counts are the same devices, which cannot overlap.
        """
        phases = self.rollout / engine_devices, self.learning / learner_devices
        return (max(phases) if self.overlaps and not in_turns else sum(phases)) + self.fixed


@dataclass(frozen=True)
class Devices:
    """GPUs or CPUs (`kind`) of one engine, with its tensor-parallel ranks, and of one learner rank."""

    kind: str
    engine: float
    rank: float


@dataclass(frozen=True)
class Layout:
    """Pool sizes, and the seconds that a step takes with them."""

    name: str
    engines: int
    ranks: int
    devices: float
    rollout_s: float
    learn_s: float
    step_s: float
    without_handover: bool
    """True where taking turns adds a hand-over to each step that no run has measured."""
    verifiers: int
    """Enough verification workers to keep up with the engines."""


@dataclass(frozen=True)
class Measured:
    """Medians over a run's newest steps, in seconds; `fixed` is the time outside of the two phases."""

    config: RunConfig
    steps: int
    rollout: float
    verify: float
    learn: float
    fixed: float

    def work(self) -> DeviceWork:
        """The cost of one of these steps.

        Raises:
            ConfigError: The engines and the learner ran on different kinds of devices.
        """
        devices = devices_of(self.config)
        return DeviceWork(
            rollout=self.rollout * self.config.rollout.num_engines * devices.engine,
            learning=self.learn * self.config.learning.num_ranks * devices.rank,
            fixed=self.fixed,
            overlaps=self.config.rollout.max_staleness > 0,
        )


@dataclass(frozen=True)
class Sizing:
    """What a measured run predicts for other pool sizes on `total` devices."""

    measured: Measured
    devices: Devices
    total: float
    layouts: tuple[Layout, ...]
    turn_budget_s: float | None
    """Seconds a step that the hand-over, both ways together, may take before taking turns is slower than
    the best split. None where one of the two does not fit, or where the measured run took turns: `fixed`
    then includes it."""
    warnings: tuple[str, ...]


def size_pools(config: RunConfig, folder: Path) -> Sizing:
    """Size the pools of `config` by the run in `folder`.

    Raises:
        ConfigError: The folder holds no run or too short a one, or the engines and the learner, or the run
            and `config`, use different kinds of devices.
    """
    measured = measure_run(folder)
    devices = devices_of(config)
    measured_kind = devices_of(measured.config).kind
    if measured_kind != devices.kind:
        raise ConfigError(
            f"{folder}: was measured on {measured_kind}s, which says nothing about {devices.kind}s; "
            f"measure a run on {devices.kind}s"
        )
    total = all_devices(config)
    layouts = [_layout("measured", measured, devices, *_pool_sizes(measured.config))]
    if _pool_sizes(config) != _pool_sizes(measured.config):
        layouts.append(_layout("this configuration", measured, devices, *_pool_sizes(config)))
    split = best_split(measured.work(), total, devices)
    turns = taking_turns(total, devices)
    if split is not None:
        layouts.append(_layout("best split", measured, devices, *split, colocate=False))
    if turns is not None:
        layouts.append(_layout("taking turns", measured, devices, *turns, colocate=True))
    budget = None
    if split is not None and turns is not None and layouts[-1].without_handover:
        budget = layouts[-2].step_s - layouts[-1].step_s
    warnings = _warnings(folder, config, devices)
    return Sizing(measured, devices, total, tuple(layouts), budget, tuple(warnings))


def measure_run(folder: Path) -> Measured:
    """The medians of a run's newest steps.

    Raises:
        ConfigError: The folder holds no run, or too short a one.
        RunError: The run's journal is damaged.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise ConfigError(
            f"{folder}: holds no run (no config.yaml); name a run's folder, such as runs/quickstart"
        )
    config = load_config(saved)
    steps = [event.values for event in read_events(folder) if isinstance(event, StepEvent)][-RECENT_STEPS:]
    if len(steps) < FEWEST_STEPS:
        raise ConfigError(
            f"{folder}: {len(steps)} steps are measured, and {FEWEST_STEPS} are needed; train a few steps "
            "first: "
            "laser train CONFIG run.steps=5 run.name=measure"
        )
    together = max if config.rollout.max_staleness > 0 else sum
    fixed = median(step["time/step"] - together((step["time/rollout"], step["time/learn"])) for step in steps)
    return Measured(
        config=config,
        steps=len(steps),
        rollout=median(step["time/rollout"] for step in steps),
        verify=median(step["time/verify"] for step in steps),
        learn=median(step["time/learn"] for step in steps),
        fixed=max(0.0, fixed),
    )


def devices_of(config: RunConfig) -> Devices:
    """The devices that one engine and one learner rank need.

    Raises:
        ConfigError: One of them uses GPUs, the other does not.
    """
    rollout, learning = config.rollout, config.learning
    if (rollout.gpus > 0) != (learning.gpus_per_rank > 0):
        raise ConfigError(
            f"rollout.gpus={rollout.gpus:g} and learning.gpus_per_rank={learning.gpus_per_rank:g}: engines "
            "and "
            "learner share no kind of device, so there is nothing to split between them; "
            "leave out --measured, or give GPUs to both or to neither"
        )
    if rollout.gpus > 0:
        return Devices("GPU", rollout.gpus * rollout.tensor_parallel, learning.gpus_per_rank)
    return Devices("CPU", rollout.cpus, learning.cpus_per_rank)


def all_devices(config: RunConfig) -> float:
    """GPUs or, without GPUs, CPUs of engines and learner together. Devices used in turns count once."""
    devices = devices_of(config)
    learner = config.learning.num_ranks * devices.rank
    return learner if config.rollout.colocate else learner + config.rollout.num_engines * devices.engine


def best_split(work: DeviceWork, total: float, devices: Devices) -> tuple[int, int] | None:
    """Engines and ranks on separate devices with the shortest step; None where not one of each fits.

    Without rounding, T(e) = a / e + b / (G - e) + h is least where dT/de = 0, so at e / (G - e) = sqrt(a /
    b).
    """
    splits = [
        (engines, _count(total - engines * devices.engine, devices.rank))
        for engines in range(1, _count(total, devices.engine) + 1)
    ]
    return min(
        (split for split in splits if split[1] >= 1),
        key=lambda split: work.seconds(split[0] * devices.engine, split[1] * devices.rank),
        default=None,
    )


def taking_turns(total: float, devices: Devices) -> tuple[int, int] | None:
    """Engines and ranks when each phase has all devices (`rollout.colocate`); None where one does not fit."""
    engines, ranks = _count(total, devices.engine), _count(total, devices.rank)
    return (engines, ranks) if engines and ranks else None


def enough_verifiers(workers: int, rollout: float, verify: float, new_rollout: float) -> int:
    """The verification workers that keep up when generation takes `new_rollout` seconds.

    Checks overlap with generation and ended `verify` seconds after it. So `workers` were busy for at most
    rollout + verify seconds; that work, spread over `new_rollout` seconds, needs no more workers than this.
    """
    busy = rollout + (verify if verify > LAST_CHECK_SHARE * rollout else 0.0)
    return max(1, math.ceil(workers * busy / new_rollout - ROUNDING))


def _pool_sizes(config: RunConfig) -> tuple[int, int, bool]:
    """Engines, ranks, and whether they take turns."""
    return config.rollout.num_engines, config.learning.num_ranks, config.rollout.colocate


def _layout(
    name: str, measured: Measured, devices: Devices, engines: int, ranks: int, colocate: bool
) -> Layout:
    work, before = measured.work(), measured.config
    engine_devices, learner_devices = engines * devices.engine, ranks * devices.rank
    rollout_s = work.rollout / engine_devices
    workers = before.verification.num_workers
    return Layout(
        name=name,
        engines=engines,
        ranks=ranks,
        devices=max(engine_devices, learner_devices) if colocate else engine_devices + learner_devices,
        rollout_s=rollout_s,
        learn_s=work.learning / learner_devices,
        step_s=work.seconds(engine_devices, learner_devices, in_turns=colocate),
        without_handover=colocate and not before.rollout.colocate,
        verifiers=enough_verifiers(workers, measured.rollout, measured.verify, rollout_s),
    )


def _count(total: float, each: float) -> int:
    """How many of size `each` fit into `total`."""
    return int(total / each + ROUNDING)


def _warnings(folder: Path, config: RunConfig, devices: Devices) -> list[str]:
    costly = [
        f"{key} ({change})"
        for key, change in changed_settings(folder / "config.yaml", config).items()
        if key.startswith(COST_SECTIONS) and not has_mark(RunConfig, key, Mark.POOL_SIZE)
    ]
    warnings = []
    if costly:
        warnings.append(
            f"{folder} was measured with other settings, which change what a step costs: {', '.join(costly)}"
        )
    if min(devices.engine, devices.rank) < 1:
        warnings.append(
            f"pool sizes: engines and ranks reserve fractions of a {devices.kind} and so share it already; "
            "the predicted times are rough"
        )
    return warnings
