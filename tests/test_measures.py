"""The table of measures against the values that the code produces and reads."""

import math
import re
from dataclasses import fields

import numpy as np
import pytest

from orchestrator.algorithm.health import RULES
from orchestrator.evaluation.figures import Figures, columns_of, set_results
from orchestrator.evaluation.samples import EvalSample
from orchestrator.measures import (
    CHART_GROUPS,
    EVALUATION_CHARTS,
    FIGURES,
    MEASURES,
    Measure,
    Place,
    charted_in,
    measure_of,
    shown_in,
)
from orchestrator.messages.batches import StepSums
from orchestrator.messages.problems import Problem
from orchestrator.messages.trajectories import GroupSummary
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import CheckedGroup, to_batch
from orchestrator.training.evaluate import held_out_figures
from orchestrator.training.live_metrics import METRICS
from orchestrator.training.step_metrics import step_metrics

STEP_METRICS = [measure for measure in MEASURES if measure not in FIGURES]

ADDED_BY_THE_SESSION = {
    *("pool/restarts", "sync/bytes", "data/skipped", "data/dropped", "time/start", "time/start_pools"),
    *(rule.key for rule in RULES),
}


def keys(measures):
    return {measure.key for measure in measures}


def sample(number, status, score):
    """A solution of one problem."""
    return EvalSample(
        set="set",
        problem_id="a",
        problem="1+1",
        reference="2",
        kind=None,
        sample=number,
        seed=number,
        response="2",
        tokens=3,
        finished=True,
        status=status,
        answer="2",
        answer_class=0 if status == "correct" else 1,
        z_logprob=-1.0,
        score=score,
    )


def test_every_measure_is_there_once_and_described():
    assert len(keys(MEASURES)) == len(MEASURES)
    for measure in MEASURES:
        assert measure.title, measure.key
        assert measure.about[0].isupper(), measure.key
        assert not measure.about.endswith("."), measure.key
        assert "|" not in measure.about, "it stands in tables of Markdown"
        assert not (measure.healthy and measure.better), "one of them says which values are good"
        assert not measure.chart or measure.chart in CHART_GROUPS


def test_a_step_has_the_metrics_of_the_table():
    summary = GroupSummary(
        prompt_tokens=2,
        lengths=np.array([30, 10], np.int32),
        finished=np.array([True, True]),
        z_logprobs=np.full(2, -20.0, np.float32),
        versions=np.zeros((2, 2), np.int32),
    )
    verdicts = [Verdict(Status.CORRECT, "1"), Verdict(Status.WRONG, "2")]
    problem = Problem.from_text("a", "p", "1")
    batch = to_batch([CheckedGroup(problem, "trajectories", "texts", summary, verdicts)])
    seconds = {"wait": 2.5, "rollout": 2.0, "verify": 0.5, "sync": 0.25, "step": 8.0}
    sums = [StepSums(tokens=40, compared_tokens=40, seconds=1.0)]
    plain = step_metrics(1, batch, None, sums, seconds)
    scored = step_metrics(1, batch, np.array([0.9, 0.1], np.float32), sums, seconds)
    assert set(scored) | ADDED_BY_THE_SESSION == keys(STEP_METRICS)
    assert set(scored) - set(plain) == {measure.key for measure in STEP_METRICS if measure.of_score}


def test_evaluations_have_the_figures_of_the_table():
    samples = [sample(0, "correct", score=0.9), sample(1, "wrong", score=0.2)]
    results = set_results("set", columns_of(samples))
    logged = {re.sub(r"_\d+$", "_k", key) for key in results.metrics()}
    during_training = set(held_out_figures(results))
    assert logged | during_training == keys(FIGURES)
    assert during_training == keys(shown_in(Place.OBJECTIVE))
    assert keys(shown_in(Place.EVALUATION)) <= {field.name for field in fields(Figures)}
    assert keys(shown_in(Place.SUMMARY)) <= during_training


def test_figures_of_the_score_are_undefined_without_one():
    samples = [sample(0, "correct", score=math.nan), sample(1, "wrong", score=math.nan)]
    figures = set_results("set", columns_of(samples)).figures
    undefined = {key for key, value in vars(figures).items() if math.isnan(value)}
    assert undefined == {field.name for field in fields(Figures) if measure_of(field.name).of_score}


def test_places_show_measures_that_they_can_have():
    of_steps = {Place.PANEL, Place.STEP_PARTS, Place.HEALTH}
    for place in of_steps:
        assert keys(shown_in(place)) <= keys(STEP_METRICS)
    for place in set(Place) - of_steps:
        assert keys(shown_in(place)) <= keys(FIGURES)
    for group in CHART_GROUPS:
        expected = FIGURES if group == EVALUATION_CHARTS else STEP_METRICS
        assert set() < keys(charted_in(group)) <= keys(expected)


def test_labels_tell_the_values_of_a_line_apart():
    for place in Place:
        labels = [measure.label for measure in shown_in(place)]
        assert len(set(labels)) == len(labels) > 0, place


def test_prometheus_gets_metrics_of_the_table():
    derived = {"step", "time/other"}
    read = {key for metric in METRICS.values() for key in metric.of_step}
    assert read - derived <= keys(STEP_METRICS)


@pytest.mark.parametrize(
    ("measure", "label", "caption"),
    [
        (
            Measure("a", "long title", "What it is", better="lower"),
            "long title",
            "What it is. Lower is better.",
        ),
        (
            Measure("a", "t", "What it is", "Should fall", short="s", unit="s"),
            "s s",
            "What it is. Should fall.",
        ),
        (Measure("a", "t", "What it is", unit="nats"), "t", "What it is."),
    ],
)
def test_a_measure_in_words(measure, label, caption):
    assert (measure.label, measure.caption) == (label, caption)
    assert measure.heading[0].isupper()
