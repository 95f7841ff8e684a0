"""How log pi(z_c) becomes a score."""

import math
from dataclasses import replace

import pytest

from orchestrator.evaluation.scores import ScoreRule
from tests.evaluation.made import NAN, sample


def test_a_measured_c_ref_makes_the_mean_score_zero():
    score = ScoreRule("z", 3, None, 0.1, "baseline")
    assert math.isnan(score.of(-18.0))
    samples = [replace(sample(), z_logprob=value) for value in (-18.0, -22.0, NAN)]
    measured = score.measured(samples)
    assert measured.c_ref == -20.0
    assert [measured.of(found.z_logprob) for found in samples[:2]] == pytest.approx([0.2, -0.2])
    assert replace(score, c_ref=-19.0).measured(samples).c_ref == -19.0


@pytest.mark.parametrize("broken", [math.inf, -math.inf, NAN])
def test_a_log_prob_that_is_not_finite_has_no_score_and_no_part_in_c_ref(broken):
    score = ScoreRule("z", 3, None, 0.1, "baseline")
    samples = [replace(sample(), z_logprob=value) for value in (-18.0, broken, -22.0)]
    measured = score.measured(samples)
    assert measured.c_ref == -20.0
    assert math.isnan(measured.of(broken))
    assert '"z_logprob": null' in samples[1].line()
