"""The points of a sweep's space: grids, drawn values, and the conditions that points must meet."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.config.formula import Formula
from orchestrator.config.schema import flat_settings
from orchestrator.config.sweep import SweepConfig, Values, namespace
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError

MAX_DRAWS = 10_000
"""Draws after which a search for one more point that meets `where` ends."""

Point = dict[str, Any]
"""Values by configuration key."""


def points(sweep: SweepConfig, base: RunConfig) -> list[Point]:
    """The points of a space of grids and drawn values, in order.

    Each draw is combined with every combination of the grids' values.

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
        for _ in range(MAX_DRAWS):
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
                f"search.points={sweep.search.points}: only {len(found)} different points were found in "
                f"{MAX_DRAWS} draws; ask for fewer, or loosen `where`"
            )
        found += new
    return found


def describe_point(point: Mapping[str, Any]) -> str:
    """A point as text: `loss.beta_v=0.1 loss.alpha=0.5`."""
    return " ".join(f"{key}={value}" for key, value in point.items()) or "with the base's settings"


def rounded(value: Any, values: Values) -> Any:
    """A drawn number, rounded to 4 significant digits within its bounds."""
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
    """The candidates that meet the conditions, without repeats."""
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
