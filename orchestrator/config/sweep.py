"""Every setting of a sweep, typed and bounded: a base configuration, a search space, seeds and an objective.

In: a YAML file. Out: a `SweepConfig` and the configuration that its trials share, or a `ConfigError`.
"""

import types
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from orchestrator.config.formula import Formula, NotDefined
from orchestrator.config.paths import PathOrName
from orchestrator.config.schema import (
    ActorCount,
    Mark,
    PositiveFloat,
    PositiveInt,
    RunName,
    Section,
    Seed,
    SettingsOf,
    Text,
    has_mark,
    validate,
    with_settings,
)
from orchestrator.config.texts import read_yaml
from orchestrator.config.training import RunConfig, load_config
from orchestrator.errors import ConfigError
from orchestrator.measures import Place, shown_in

Value = bool | int | float | str | None


class Values(Section):
    """The values of one searched key. Give exactly one of `grid`, `choice`, `uniform` and `log_uniform`."""

    grid: Annotated[list[Value], Field(min_length=1)] | None = None
    """Each of these values, combined with each value of the other grids."""
    choice: Annotated[list[Value], Field(min_length=1)] | None = None
    """One of these values, drawn for each point."""
    uniform: tuple[float, float] | None = None
    """A number from this range, drawn for each point."""
    log_uniform: tuple[PositiveFloat, PositiveFloat] | None = None
    """A number from this range, drawn for each point uniformly in its logarithm."""
    when: str | None = None
    """A condition on other keys, such as `loss.alpha > 0`. Where it fails, the base's value stays."""

    @property
    def kind(self) -> str:
        """The one of the four that is given."""
        return next(
            kind for kind in ("grid", "choice", "uniform", "log_uniform") if getattr(self, kind) is not None
        )

    @model_validator(mode="after")
    def _one_kind(self) -> "Values":
        given = [
            kind for kind in ("grid", "choice", "uniform", "log_uniform") if getattr(self, kind) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "space: give each key exactly one of grid, choice, uniform and log_uniform, not "
                f"{given or 'none'}"
            )
        for kind in ("uniform", "log_uniform"):
            bounds = getattr(self, kind)
            if bounds is not None and bounds[0] >= bounds[1]:
                raise ValueError(f"space: {kind}: {list(bounds)} must rise from its lower to its upper bound")
        if self.when is not None:
            _formula("space: when", self.when)
        return self


class SearchConfig(Section):
    """How a sweep finds its points."""

    algorithm: Literal["random", "optuna"] = "random"
    """`random` draws choice, uniform and log_uniform values; `optuna` proposes them from earlier results."""
    points: PositiveInt | None = None
    """Points to draw or propose, each combined with all grids. Leave it out when all keys are grids."""
    seed: Seed = 0
    """Seed of the draws."""


class AshaConfig(Section):
    """Pruning by ASHA: a trial stops at a rung where it is not among the best."""

    grace_steps: PositiveInt
    """Training steps before the first rung. The first evaluation at or after a rung counts for it."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """Each rung keeps 1/reduction_factor of its trials; the next is reduction_factor times as far."""


class SweepConfig(Section):
    """Settings of `laser sweep`."""

    name: RunName
    """Name of the sweep: its folder under the base's `run.dir`, its MLflow run, and the registered model."""
    base: PathOrName
    """YAML configuration that the trials start from."""
    settings: Annotated[dict[str, Any], SettingsOf(RunConfig)] = Field(default={})
    """Sections merged over the base's, for all trials."""
    space: Annotated[dict[str, Values], Field(min_length=1)]
    """The searched values by configuration key."""
    where: list[str] = Field(default=[])
    """Conditions that each point must meet, such as `loss.alpha * loss.beta_v < 0.5`."""
    seeds: list[Seed] = Field(default=[0], min_length=1)
    """`run.seed` of the trials; each point is trained with each."""
    metric: Text = "(accuracy + self_verification_f1) / 2"
    """The formula to maximise, over the figures of the evaluation on the held-out problems."""
    search: SearchConfig = SearchConfig()
    asha: AshaConfig | None = None
    """Prunes trials that fall behind at an evaluation; null trains every trial to its end."""
    concurrency: ActorCount | None = None
    """Trials at a time; null for as many as the cluster holds."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a trial that fails is resumed from its last checkpoint before it counts as failed."""
    wait_s: PositiveFloat = 1800.0
    """Seconds without a running trial, while other work holds the cluster, after which the sweep gives up."""

    @model_validator(mode="after")
    def _agree(self) -> "SweepConfig":
        kinds = {key: values.kind for key, values in self.space.items()}
        drawn = [key for key, kind in kinds.items() if kind != "grid"]
        if drawn and self.search.points is None:
            raise ValueError(
                f"search.points: missing; {', '.join(drawn)} are drawn, so give the number of points to draw"
            )
        if not drawn and self.search.points is not None:
            raise ValueError(
                "search.points: all keys of the space are grids, whose values are all trained; leave it out"
            )
        if self.search.algorithm == "optuna":
            if grids := [key for key, kind in kinds.items() if kind == "grid"]:
                raise ValueError(
                    "search.algorithm: optuna proposes values and cannot train the whole grids of "
                    f"{', '.join(grids)}: use choice"
                )
            if self.where:
                raise ValueError("where: search.algorithm=optuna cannot leave out points; use `when`")
        for text in self.where:
            _formula("where", text)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} has a seed twice")
        metric = _formula("metric", self.metric)
        try:
            metric.number({measure.key: 0.5 for measure in shown_in(Place.OBJECTIVE)})
        except NotDefined:
            pass  # equal figures may make a denominator zero
        except ValueError as error:
            raise ValueError(f"metric: {error}") from error
        return self


def _formula(key: str, text: str) -> Formula:
    try:
        return Formula(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def load_sweep(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> SweepConfig:
    """Read a sweep's YAML file, with overrides such as `concurrency=1` or `settings.run.steps=50`.

    Raises:
        ConfigError: As `load_config`.
    """
    return load_config(path, list(overrides), SweepConfig)


def base_config(sweep: SweepConfig) -> RunConfig:
    """The configuration that all trials share, before their points.

    Raises:
        ConfigError: The base cannot be read, base and settings are no valid configuration, or they name no
            held-out problems.
    """
    source = f"base {sweep.base} with settings"
    tree = read_yaml(Path(sweep.base), "`base` names the YAML configuration that the trials start from.")
    config = validate(_merged(tree, sweep.settings), RunConfig, source)
    if config.data.eval is None:
        raise ConfigError(f"{source}: data.eval is missing: a sweep compares its trials on held-out problems")
    if config.run.remote is not None:
        raise ConfigError(
            f"{source}: run.remote is {config.run.remote}, but a sweep needs a folder that its nodes share: "
            "set run.remote to null"
        )
    for key in sweep.space:
        if has_mark(RunConfig, key, Mark.SET_BY_SWEEP):
            raise ConfigError(
                f"space: the sweep itself sets {key}"
                + (": list the values as `seeds`" if key == "run.seed" else "")
            )
        for value in getattr(sweep.space[key], sweep.space[key].kind):
            _check_value(config, key, value)
    return config


def namespace(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as the names of a formula: `{"loss.alpha": 1}` becomes `loss` with the attribute `alpha`."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return {name: types.SimpleNamespace(**values) for name, values in sections.items()}


def _check_value(config: RunConfig, key: str, value: Any) -> None:
    """Refuse a value that its own type and bounds exclude.

    Whether it agrees with the values of the other keys depends on the point, and is checked later.
    """
    try:
        with_settings(config, {key: value}, f"space: {key}")
    except ConfigError as error:
        cause = error.__cause__
        if not isinstance(cause, ValidationError) or any(
            problem["type"] != "value_error" for problem in cause.errors()
        ):
            raise


def _merged(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The tree with the values of `over`, section by section."""
    merged = dict(tree)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
