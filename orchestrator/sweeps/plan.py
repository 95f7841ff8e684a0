"""What a sweep trains: a trial for each point of its space and each seed, and the trunks that trials share.

While step <= `loss.reasoning_warmup_steps` a run is plain GRPO and does not depend on alpha, beta_v or tau.
So one run, the trunk, makes these steps, c_ref and the evaluation of the initial model for all trials that
agree in everything else. These trials branch from its last checkpoint.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.config.paths import LONGEST_NAME, short_name
from orchestrator.config.schema import Mark, has_mark, with_settings
from orchestrator.config.sources import absolute_sources
from orchestrator.config.sweep import SweepConfig
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import absolute_path
from orchestrator.errors import ConfigError
from orchestrator.sweeps.space import Point, describe_point, points
from orchestrator.tracking.address import tracking_uri


@dataclass(frozen=True)
class Member:
    """A run of a sweep: a trial or a trunk."""

    name: str
    point: Point
    seed: int
    config: RunConfig
    trunk: str | None = None
    """Name of the trunk that a trial branches from."""
    is_trunk: bool = False


class SweepPlan:
    """The runs of a sweep.

    Attributes:
        trials: All trials; empty with Optuna, which has not proposed their points yet.
        trunks: The trunks that the trials branch from.

    Raises:
        ConfigError: A point makes no valid configuration, no point meets `where`, or no searched key has an
            effect.
    """

    def __init__(self, sweep: SweepConfig, base: RunConfig) -> None:
        self.sweep = sweep
        self.folder = (base.run.dir / sweep.name).resolve()
        self.base = _with_absolute_paths(base)
        self.tracking_uri = tracking_uri(base.tracking.uri, base.run.dir.resolve())
        self.trials: list[Member] = []
        self.trunks: list[Member] = []
        if sweep.search.algorithm == "optuna":
            self.trunks = self._trunks_for_optuna()
        else:
            self.trials = self._planned_trials(points(sweep, base))
            self.trunks = self._trunks_of(self.trials)
        if self.base.loss.reasoning_warmup_steps >= base.run.steps and all(
            has_mark(RunConfig, key, Mark.AFTER_WARM_UP) for key in sweep.space
        ):
            raise ConfigError(
                f"space: {', '.join(sweep.space)} have no effect up to step loss.reasoning_warmup_steps="
                f"{base.loss.reasoning_warmup_steps}, and run.steps={base.run.steps} ends there: raise "
                "run.steps, or lower the warm-up"
            )

    def trial(self, point: Point, seed: int, alone: bool = False) -> Member:
        """The trial of a point and a seed. With `alone` it has no trunk and trains every step itself.

        Raises:
            ConfigError: The point makes no valid configuration.
        """
        name = member_name(point, seed, self.sweep.space)
        config = self._configured(point, "trials", name, seed)
        trunk = None if alone else self._trunk_of(config, point)
        return Member(name, point, seed, config, trunk)

    def _planned_trials(self, found: list[Point]) -> list[Member]:
        """Every point with every seed.

        A trial that would be the only one of its trunk gets none: that trunk would save nothing.
        """
        trials = [self.trial(point, seed) for point in found for seed in self.sweep.seeds]
        shared = Counter(trial.trunk for trial in trials)
        trials = [
            trial if shared[trial.trunk] > 1 else self.trial(trial.point, trial.seed, alone=True)
            for trial in trials
        ]
        names = Counter(trial.name for trial in trials)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise ConfigError(
                f"space: two points would both be named {repeated[0]}: their values look the same as text"
            )
        return trials

    def _trunks_of(self, trials: list[Member]) -> list[Member]:
        first_trials: dict[str, Member] = {}
        for trial in trials:
            if trial.trunk is not None:
                first_trials.setdefault(trial.trunk, trial)
        return [self._trunk(trial.point, trial.seed) for trial in first_trials.values()]

    def _trunks_for_optuna(self) -> list[Member]:
        """A trunk for each seed, if all of Optuna's points can share it and there will be several."""
        if (
            not all(has_mark(RunConfig, key, Mark.AFTER_WARM_UP) for key in self.sweep.space)
            or self.sweep.search.points == 1
        ):
            return []
        return [self._trunk({}, seed) for seed in self.sweep.seeds]

    def _trunk(self, point: Point, seed: int) -> Member:
        point = _before_the_branch(point)
        name = self._trunk_name(point, seed)
        config = self._configured(point | self._valid_beta_v(point), "trunks", name, seed)
        config = with_settings(config, {"run.steps": config.loss.reasoning_warmup_steps}, "trunk")
        return Member(name, point, seed, config, is_trunk=True)

    def _valid_beta_v(self, point: Point) -> Point:
        """A valid `loss.beta_v` for a trunk whose c_ref does not allow the base's.

        A trunk computes no score with it.
        """
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
        return member_name(point, seed, self.sweep.space, "trunk_")

    def _configured(self, point: Point, kind: str, name: str, seed: int) -> RunConfig:
        own = {"run.name": name, "run.dir": str(self.folder / kind), "run.seed": seed}
        try:
            return with_settings(self.base, point | own, f"point {describe_point(point)}")
        except ConfigError as error:
            raise ConfigError(f"space: {error}") from error


def member_name(point: Mapping[str, Any], seed: int, keys: Iterable[str], start: str = "") -> str:
    """A run's name, and its folder's, from its point: `beta_v-0.1_alpha-0.5_seed-0`.

    A name that is too long for a folder keeps its first values and gets a hash of all of them; `results.json`
    has the whole point.

    Args:
        keys: All keys that the sweep searches. A last part that two of them share is written with its
            section.
        start: What the name begins with.
    """
    leaves = Counter(key.rpartition(".")[2] for key in keys)
    parts = []
    for key, value in point.items():
        leaf = key.rpartition(".")[2]
        parts.append(f"{_key_slug(leaf if leaves[leaf] == 1 else key)}-{_slug(value)}")
    end = f"seed-{seed}"
    name = start + "_".join([*parts, end])
    return (
        name if len(name) <= LONGEST_NAME else f"{short_name(name.removesuffix(f'_{end}'), longest=0)}_{end}"
    )


def _before_the_branch(point: Point) -> Point:
    return {key: value for key, value in point.items() if not has_mark(RunConfig, key, Mark.AFTER_WARM_UP)}


def _key_slug(key: str) -> str:
    """A key of a pass-through dictionary may have characters that no name of a run has."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", key).lstrip("._-") or "key"


def _slug(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    if re.fullmatch(r"[A-Za-z0-9.+-]{1,24}", text):
        return text.replace("+", "")
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def _with_absolute_paths(base: RunConfig) -> RunConfig:
    """The base with absolute paths: a trial runs in an actor, which may have another working directory."""
    data = {
        f"data.{key}": absolute_sources(sources)
        for key in ("train", "eval")
        if (sources := getattr(base.data, key)) is not None
    }
    if base.data.chat_template is not None:
        data["data.chat_template"] = str(base.data.chat_template.resolve())
    # A server from the environment is not written into the settings, which each run saves: its address may
    # hold a password.
    uri = (
        base.tracking.uri
        if os.environ.get("MLFLOW_TRACKING_URI")
        else tracking_uri(base.tracking.uri, base.run.dir.resolve())
    )
    return with_settings(
        base,
        {"model.path": absolute_path(base.model.path), "tracking.uri": uri} | data,
    )
