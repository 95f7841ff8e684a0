"""Samples of an evaluation, made by hand."""

import math

from orchestrator.evaluation.samples import EvalSample

NAN = math.nan


def sample(
    number=0,
    status="correct",
    answer="4",
    answer_class=0,
    score=0.9,
    problem="p",
    set_name="s",
    finished=True,
    tokens=10,
):
    z_logprob = NAN if math.isnan(score) else score * 10 - 20
    return EvalSample(
        set_name, problem, "2+2", "4", None, number, 7 + number, "four", tokens, finished, status, answer,
        answer_class, z_logprob, score
    )  # fmt: skip


def samples_of_two_problems():
    """p: right .9, wrong .6, wrong .2, unfinished; q: right .4, wrong .3 twice (one without an answer), timed
    out .8."""
    return [
        sample(0, "correct", "4", 0, 0.9, "p", tokens=10),
        sample(1, "wrong", "5", 1, 0.6, "p", tokens=20),
        sample(2, "wrong", "5", 1, 0.2, "p", tokens=30),
        sample(3, "no_answer", None, None, NAN, "p", finished=False, tokens=40),
        sample(0, "correct", "4", 0, 0.4, "q", tokens=10),
        sample(1, "wrong", "7", 1, 0.3, "q", tokens=10),
        sample(2, "no_answer", None, None, 0.3, "q", tokens=10),
        sample(3, "timeout", "9^9", None, 0.8, "q", tokens=10),
    ]
