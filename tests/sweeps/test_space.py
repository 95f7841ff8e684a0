"""The points of a sweep's space."""

import pytest

from orchestrator.config.sweep import Values, base_config
from orchestrator.errors import ConfigError
from orchestrator.sweeps.space import in_effect, points, rounded


def test_drawn_values_are_the_same_for_all_grid_values_and_seeds_and_repeat_with_the_seed(load):
    space = {"loss.alpha": {"log_uniform": [0.01, 1]}, "loss.beta_v": {"grid": [0.1, 0.2]}}
    sweep = load(space=space, search={"points": 3, "seed": 7})
    found = points(sweep, base_config(sweep))
    assert len(found) == 6
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert first["loss.alpha"] == second["loss.alpha"] == float(f"{first['loss.alpha']:.4g}")
        assert 0.01 <= first["loss.alpha"] <= 1
    assert found == points(sweep, base_config(sweep))
    other = load(space=space, search={"points": 3, "seed": 8})
    assert found != points(other, base_config(other))


def test_a_number_is_rounded_within_its_bounds():
    assert rounded(0.123456, Values(uniform=(0.0, 1.0))) == 0.1235
    assert rounded(0.123449, Values(uniform=(0.12348, 1.0))) == 0.12348
    assert rounded("calibrate", Values(choice=["calibrate", "exact"])) == "calibrate"


def test_a_key_whose_condition_fails_keeps_the_base_value_and_makes_no_second_point(load):
    sweep = load(
        space={"loss.alpha": {"grid": [0.0, 1.0]}, "loss.tau": {"grid": [0.0, 0.5], "when": "loss.alpha > 0"}}
    )
    assert points(sweep, base_config(sweep)) == [
        {"loss.alpha": 0.0},
        {"loss.alpha": 1.0, "loss.tau": 0.0},
        {"loss.alpha": 1.0, "loss.tau": 0.5},
    ]
    assert in_effect(sweep, base_config(sweep), {"loss.alpha": 0.0, "loss.tau": 0.5}) == {"loss.alpha": 0.0}


def test_points_that_fail_a_condition_are_left_out_and_draws_are_drawn_again(load):
    sweep = load(
        space={"loss.alpha": {"uniform": [0.0, 1.0]}, "loss.beta_v": {"grid": [0.1, 0.2]}},
        where=["loss.alpha * loss.beta_v > 0.05"],
        search={"points": 5},
    )
    found = points(sweep, base_config(sweep))
    assert len({point["loss.alpha"] for point in found}) == 5
    assert all(point["loss.alpha"] * point["loss.beta_v"] > 0.05 for point in found)
    few = load(space={"loss.alpha": {"choice": [0.1, 0.2]}}, search={"points": 3})
    with pytest.raises(ConfigError, match=r"search.points=3: only 2 different points"):
        points(few, base_config(few))
