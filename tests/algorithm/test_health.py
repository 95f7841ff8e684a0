"""The health rules: each breaks on a made run of numbers, and not on its neighbours."""

import math

import pytest

from orchestrator.algorithm.health import RULES, Health
from orchestrator.config.health import HealthConfig
from orchestrator.measures import Place, shown_in

DEFAULTS = HealthConfig()
HEALTHY = {
    "train/accuracy": 0.5,
    "policy/entropy": 0.3,
    "train/response_tokens": 400.0,
    "self_reward/score_wrong": 0.05,
    "self_reward/z_mass": 1e-6,
    "policy/mismatch_kl": 2e-4,
}


def judged(steps, config=DEFAULTS):
    """The broken rules after each step."""
    health = Health(config.thresholds, config.window)
    return [{key for key, value in health.judge(step).items() if value} for step in steps]


def after(metric, value, steps=10):
    """Ten healthy steps, and then steps with another value of one metric."""
    return [HEALTHY] * 10 + [HEALTHY | {metric: value}] * steps


@pytest.mark.parametrize(
    ("metric", "ill", "well", "rule"),
    [
        ("train/accuracy", 0.24, 0.26, "accuracy"),
        ("train/accuracy", 0.0, 1.0, "accuracy"),
        ("policy/entropy", 0.009, 0.011, "entropy"),
        ("train/response_tokens", 79.0, 81.0, "length"),
        ("self_reward/score_wrong", 0.76, 0.74, "score"),
        ("self_reward/score_wrong", -0.76, -0.74, "score"),
        ("self_reward/z_mass", 0.011, 0.009, "z_mass"),
        ("policy/mismatch_kl", 2.1e-3, 1.9e-3, "mismatch"),
    ],
)
def test_each_rule_breaks_beyond_its_threshold_only(metric, ill, well, rule):
    assert judged(after(metric, ill))[-1] == {f"health/{rule}"}
    assert judged(after(metric, well))[-1] == set()


def test_one_bad_step_breaks_nothing_and_a_rule_is_kept_again_later():
    found = judged([*after("policy/entropy", 0.0, 1), *[HEALTHY] * 5])
    assert not any(found)
    found = judged([*after("policy/entropy", 0.0, 12), *[HEALTHY] * 10])
    assert found[9] == set()
    assert found[20] == {"health/entropy"}
    assert found[-1] == set()


def test_nothing_is_judged_before_the_window_is_full():
    assert not any(judged([HEALTHY | {"policy/entropy": 0.0}] * 9))
    assert judged([HEALTHY | {"policy/entropy": 0.0}] * 10)[-1] == {"health/entropy"}


def test_undefined_and_missing_values_leave_a_rule_as_it_is():
    warm_up = {key: value for key, value in HEALTHY.items() if key != "self_reward/score_wrong"}
    gap = HEALTHY | {"self_reward/score_wrong": math.nan}
    found = judged([*[warm_up] * 20, *after("self_reward/score_wrong", 0.9), *[gap] * 20])
    assert found[29] == set()
    assert found[-1] == {"health/score"}


def test_a_best_accuracy_of_zero_is_no_collapse():
    assert not any(judged([HEALTHY | {"train/accuracy": 0.0}] * 30))


def test_rounding_that_grows_is_no_mismatch():
    steps = [HEALTHY | {"policy/mismatch_kl": 1e-9}] * 10 + [HEALTHY | {"policy/mismatch_kl": 1e-5}] * 10
    assert not any(judged(steps))


def test_a_rule_without_a_threshold_is_off():
    config = HealthConfig(entropy=None, window=2)
    health = Health(config.thresholds, config.window)
    assert "health/entropy" not in health.judge(HEALTHY | {"policy/entropy": 0.0})
    assert not any(judged(after("policy/entropy", 0.0), config))


def test_the_reason_names_metric_value_and_setting():
    health = Health(DEFAULTS.thresholds, DEFAULTS.window)
    health.replay(after("train/accuracy", 0.1))
    (reason,) = health.broken.values()
    assert reason == "train/accuracy is 0.1 over 10 steps, below health.accuracy=0.5 times its best, 0.5"


def test_settings_measures_and_rules_agree():
    assert set(DEFAULTS.thresholds) == {rule.name for rule in RULES}
    assert [measure.key for measure in shown_in(Place.HEALTH)] == [rule.key for rule in RULES]
