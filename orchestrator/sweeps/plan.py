"""What a sweep trains: the points of its space, a trial for each with each seed, and the trunks that trials share.

While step <= `loss.reasoning_warmup_steps` a run is plain GRPO and does not depend on alpha, beta_v or tau. So those steps, c_ref and the
evaluation of the initial model are made once for all trials that agree in everything else: by a trunk, which they branch from.
"""

import hashlib
import itertools
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.config.formula import Formula
from orchestrator.config.schema import flat_settings, with_settings
from orchestrator.config.sweep import SweepConfig, Values, namespace
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import absolute_path
from orchestrator.errors import ConfigError
from orchestrator.tracking.address import tracking_uri

AFTER_THE_TRUNK = (
    "loss.alpha", "loss.beta_v", "loss.tau", "loss.filter_std", "loss.self_reward_warmup_steps", "run.steps",
)  # fmt: skip
"""Settings that change nothing before the self-reward joins."""

DRAWS = 10_000
"""Points that are drawn at most to find those that meet `where`."""

Point = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """A run of a sweep: a trial, or the trunk of some."""

    name: str
    point: Point
    seed: int
    config: RunConfig
    trunk: str | None = None
    is_trunk: bool = False


class Plan:
    """The runs that a sweep asks for.

    Raises:
        ConfigError: A point makes no valid configuration, no point meets `where`, or nothing that is searched can have an effect.
    """

    def __init__(self, sweep: SweepConfig, base: RunConfig) -> None:
        self.sweep, self.folder = sweep, (base.run.dir / sweep.name).resolve()
        self.base = _for_any_directory(base)
        self.tracking_uri = tracking_uri(base.tracking.uri, base.run.dir.resolve())
        self.trials: list[Member] = []
        """All trials; empty where Optuna is yet to propose their points."""
        if sweep.search.algorithm == "random":
            trials = [self.trial(point, seed) for point in points(sweep, base) for seed in sweep.seeds]
            shared = Counter(trial.trunk for trial in trials)
            # A trunk for one trial would save nothing.
            self.trials = [
                trial if shared[trial.trunk] > 1 else self.trial(trial.point, trial.seed, alone=True)
                for trial in trials
            ]
            names = Counter(trial.name for trial in trials)
            if alike := [name for name, count in names.items() if count > 1]:
                raise ConfigError(
                    f"space: two points would be named {alike[0]}: their values are written alike"
                )
        if self.base.loss.reasoning_warmup_steps >= base.run.steps and all(
            key in AFTER_THE_TRUNK for key in sweep.space
        ):
            raise ConfigError(
                f"space: {', '.join(sweep.space)} have no effect up to step loss.reasoning_warmup_steps="
                f"{base.loss.reasoning_warmup_steps}, and run.steps={base.run.steps} ends there: train longer, or warm up for less"
            )

    def trial(self, point: Point, seed: int, alone: bool = False) -> Member:
        """The trial of a point and a seed; `alone` lets it train its first steps itself."""
        name = member_name(point, seed, self.sweep.space)
        config = self._configured(point, "trials", name, seed)
        trunk = None if alone else self._trunk_of(config, point)
        return Member(name, point, seed, config, trunk)

    @property
    def trunks(self) -> list[Member]:
        """The trunks that the trials branch from."""
        if self.sweep.search.algorithm == "optuna":
            if not all(key in AFTER_THE_TRUNK for key in self.sweep.space) or self.sweep.search.points == 1:
                return []
            return [self._trunk({}, seed) for seed in self.sweep.seeds]
        trunks: dict[str, Member] = {}
        for trial in self.trials:
            if trial.trunk is not None and trial.trunk not in trunks:
                trunks[trial.trunk] = self._trunk(trial.point, trial.seed)
        return list(trunks.values())

    def _trunk(self, point: Point, seed: int) -> Member:
        point = _before_the_branch(point)
        name = self._trunk_name(point, seed)
        config = self._configured(point | self._valid_beta_v(point), "trunks", name, seed)
        return Member(
            name,
            point,
            seed,
            with_settings(config, {"run.steps": config.loss.reasoning_warmup_steps}, "trunk"),
            is_trunk=True,
        )

    def _valid_beta_v(self, point: Point) -> Point:
        """A `loss.beta_v` for a trunk of the point, where the base's is for another c_ref; a trunk computes no score with it."""
        c_ref = point.get("loss.c_ref", self.base.loss.c_ref)
        if isinstance(c_ref, str) or check_c_ref(c_ref, self.base.loss.beta_v).level != "refuse":
            return {}
        return {"loss.beta_v": -2 / c_ref}

    def _trunk_of(self, config: RunConfig, point: Point) -> str | None:
        """Name of the trunk that a trial can branch from."""
        if config.loss.reasoning_warmup_steps >= config.run.steps:
            return None
        if self.sweep.search.algorithm == "optuna" and not self.trunks:
            return None
        return self._trunk_name(_before_the_branch(point), config.run.seed)

    def _trunk_name(self, point: Point, seed: int) -> str:
        return "trunk_" + member_name(point, seed, self.sweep.space)

    def _configured(self, point: Point, kind: str, name: str, seed: int) -> RunConfig:
        own = {"run.name": name, "run.dir": str(self.folder / kind), "run.seed": seed}
        try:
            return with_settings(self.base, point | own, f"point {describe(point)}")
        except ConfigError as error:
            raise ConfigError(f"space: {error}") from error


def points(sweep: SweepConfig, base: RunConfig) -> list[Point]:
    """The points of a space of grids and drawn values, in order: grids whole, and each draw with each of their values.

    Raises:
        ConfigError: No point, or fewer than `search.points`, meet the conditions.
    """
    grids = {key: values.grid for key, values in sweep.space.items() if values.grid is not None}
    crossed = [
        dict(zip(grids, combination, strict=True)) for combination in itertools.product(*grids.values())
    ]
    if sweep.search.points is None:
        found = _distinct(sweep, base, iter(crossed))
        if not found:
            raise ConfigError(f"where: none of the {len(crossed)} points meets {' and '.join(sweep.where)}")
        return found
    generator = random.Random(sweep.search.seed)
    drawn_keys = {key: values for key, values in sweep.space.items() if values.grid is None}
    found = []
    for _ in range(sweep.search.points):
        for _ in range(DRAWS):
            draw = {key: _draw(values, generator) for key, values in drawn_keys.items()}
            new = [
                point
                for point in _distinct(sweep, base, iter([draw | grid for grid in crossed]))
                if point not in found
            ]
            if new:
                break
        else:
            raise ConfigError(
                f"search.points={sweep.search.points}: only {len(found)} different points were found in {DRAWS} draws; "
                "ask for fewer, or loosen `where`"
            )
        found += new
    return found


def member_name(point: Mapping[str, Any], seed: int, keys: Iterable[str]) -> str:
    """A run's name from its point: `beta_v-0.1_alpha-0.5_seed-0`, fit for a folder. `keys` are all that the sweep searches."""
    leaves = Counter(key.rpartition(".")[2] for key in keys)
    parts = []
    for key, value in point.items():
        leaf = key.rpartition(".")[2]
        parts.append(f"{leaf if leaves[leaf] == 1 else key}-{_slug(value)}")
    return "_".join([*parts, f"seed-{seed}"])


def describe(point: Mapping[str, Any]) -> str:
    """A point for a person: `loss.beta_v=0.1 loss.alpha=0.5`."""
    return " ".join(f"{key}={value}" for key, value in point.items()) or "of the base's settings"


def rounded(value: Any, values: Values) -> Any:
    """A drawn number as it is trained with and named: 4 significant digits, within its bounds."""
    bounds = values.uniform or values.log_uniform
    return value if bounds is None else min(max(float(f"{value:.4g}"), bounds[0]), bounds[1])


def in_effect(sweep: SweepConfig, base: RunConfig, point: Point) -> Point:
    """The point without the keys whose `when` does not hold."""
    kept = dict(point)
    for key, values in sweep.space.items():
        if (
            values.when is not None
            and key in kept
            and not _holds(values.when, base, kept, f"space: {key}: when")
        ):
            del kept[key]
    return kept


def _distinct(sweep: SweepConfig, base: RunConfig, candidates: Iterator[Point]) -> list[Point]:
    """Candidates that meet the conditions, each once."""
    found: list[Point] = []
    for candidate in candidates:
        point = in_effect(sweep, base, candidate)
        if point not in found and all(_holds(text, base, point, "where") for text in sweep.where):
            found.append(point)
    return found


def _holds(text: str, base: RunConfig, point: Point, where: str) -> bool:
    try:
        return bool(Formula(text).value(namespace(flat_settings(base) | point)))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _draw(values: Values, generator: random.Random) -> Any:
    if values.choice is not None:
        return generator.choice(values.choice)
    if values.uniform is not None:
        return rounded(generator.uniform(*values.uniform), values)
    assert values.log_uniform is not None
    low, high = map(math.log, values.log_uniform)
    return rounded(math.exp(generator.uniform(low, high)), values)


def _before_the_branch(point: Point) -> Point:
    return {key: value for key, value in point.items() if key not in AFTER_THE_TRUNK}


def _slug(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    if re.fullmatch(r"[A-Za-z0-9.+-]{1,24}", text):
        return text.replace("+", "")
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def _for_any_directory(base: RunConfig) -> RunConfig:
    """The base with absolute paths: a trial's driver runs in an actor, whose working directory may be another one."""
    data = {
        key: str(Path(path).resolve())
        for key in ("train", "eval")
        if (path := getattr(base.data, key)) and Path(path).exists()
    }
    # A server named in the environment stays there: its address may hold a password, and settings are saved with each run.
    uri = (
        base.tracking.uri
        if os.environ.get("MLFLOW_TRACKING_URI")
        else tracking_uri(base.tracking.uri, base.run.dir.resolve())
    )
    return with_settings(
        base,
        {"model.path": absolute_path(base.model.path), "tracking.uri": uri}
        | {f"data.{key}": path for key, path in data.items()},
    )
