"""The figures of an evaluated batch: by hand, and equal to those of `laser eval` for the same samples."""

import json
import math

import numpy as np
import pytest
import ray
from rich.console import Console

from actors.pooling import AnswerComparer, AnswerPool
from actors.verification import PLAIN_VERIFIER, VerificationWorker
from orchestrator.config.verifiers import verifier_text
from orchestrator.evaluation.answers import number_answers, pool_answers, wrong_answers
from orchestrator.evaluation.figures import set_results
from orchestrator.evaluation.run import evaluate, load_eval
from orchestrator.evaluation.samples import EvalSample, SampleFile
from orchestrator.evaluation.show import EvalProgress
from orchestrator.messages.problems import Problem
from orchestrator.messages.trajectories import GroupSummary
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import CheckedGroup, to_batch
from orchestrator.pools.events import finished
from orchestrator.pools.pool import Pool
from orchestrator.training.evaluate import columns_of_batch, headline_of, held_out_figures, score_figure

NAN = math.nan
CORRECT, WRONG, FORMAT = Status.CORRECT, Status.WRONG, Status.FORMAT
NO_ANSWER, TIMEOUT, ERROR = Status.NO_ANSWER, Status.TIMEOUT, Status.ERROR


def group(name, samples, kind=None):
    """`samples`: (status, answer, finished, tokens) each."""
    count = len(samples)
    finished = np.array([sample[2] for sample in samples])
    return CheckedGroup(
        Problem.from_text(name, f"problem {name}", "1", kind=kind),
        trajectories="trajectories",
        texts="texts",
        summary=GroupSummary(
            prompt_tokens=2,
            lengths=np.array([sample[3] for sample in samples], np.int32),
            finished=finished,
            z_logprobs=np.where(finished, -20.0, NAN).astype(np.float32),
            versions=np.zeros((count, 2), np.int32),
        ),
        verdicts=[Verdict(status, answer) for status, answer, _, _ in samples],
    )


@pytest.fixture
def batch():
    """Two problems of two kinds; one sample is cut off, one could not be checked."""
    return to_batch(
        [
            group(
                "a",
                [
                    (CORRECT, "1", True, 10),
                    (WRONG, "2", True, 20),
                    (WRONG, "2", True, 30),
                    (NO_ANSWER, None, False, 40),
                ],
                "easy",
            ),
            group(
                "b",
                [
                    (CORRECT, "1", True, 10),
                    (CORRECT, "1.0", True, 10),
                    (WRONG, "3", True, 10),
                    (TIMEOUT, "1", True, 30),
                ],
                "hard",
            ),
        ]
    )


def figures_of(batch, scores):
    """The recorded figures, with wrong answers compared in a real child process."""
    comparer = AnswerComparer()
    classes = [
        number_answers(one.verdicts, AnswerPool(comparer).classes(wrong_answers(one.verdicts)))
        for one in batch.groups
    ]
    comparer.close()
    return held_out_figures(set_results("set", columns_of_batch(batch, scores, classes), tables=False))


SCORES = np.array([0.9, 0.2, 0.6, NAN, 0.8, 0.4, 0.7, 0.99], np.float32)


def test_every_figure_by_hand(batch):
    figures = figures_of(batch, SCORES)
    assert figures["accuracy"] == pytest.approx(3 / 7)  # of the samples that could be checked
    assert figures["finished_share"] == 7 / 8
    assert figures["unverified"] == 1
    assert figures["response_tokens"] == 20
    # Correct ones score 0.9, 0.8 and 0.4, wrong ones 0.2, 0.6 and 0.7; the cut-off and the unchecked one are
    # left out.
    assert figures["accuracy_correct"] == pytest.approx(2 / 3)
    assert figures["accuracy_wrong"] == pytest.approx(1 / 3)
    assert figures["self_verification_f1"] == pytest.approx(4 / 9)
    # Of nine pairs the correct one is higher in 3 (0.9), 3 (0.8) and 1 (0.4).
    assert figures["auroc"] == pytest.approx(7 / 9)
    # Within problem a: 2 of 2; within b: 0.8 above 0.7, 0.4 not.
    assert figures["auroc_within_problem"] == pytest.approx(3 / 4)
    assert figures["mixed_problems"] == 2
    # Easy problems are right in 1 of 3 scored samples, hard ones in 2 of 3: correct samples have (1/3, 2/3,
    # 2/3), wrong ones (1/3, 1/3, 2/3).
    assert figures["auroc_problem_only"] == pytest.approx((0.5 + 0.5 + 0 + 1 + 1 + 0.5 + 1 + 1 + 0.5) / 9)
    # Six bins of one sample each: |0.9 - 1|, |0.2 - 0|, |0.6 - 0|, |0.8 - 1|, |0.4 - 1|, |0.7 - 0|.
    assert figures["ece"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.2 + 0.6 + 0.7) / 6, abs=1e-6)


def test_votes_by_hand(batch):
    figures = figures_of(batch, SCORES)
    # a: two votes for "2" beat one for "1". b: "1" and "1.0" are one answer, and beat "3".
    assert figures["maj_at_k"] == 1 / 2
    # a: 0.9 for "1" beats 0.2 + 0.6 for "2".
    assert figures["weighted_at_k"] == 1.0


def test_unchecked_samples_do_not_vote():
    """Nobody knows whether their answers are right, so nobody could judge a vote that they win."""
    problem = group("a", [(ERROR, "7", True, 1), (TIMEOUT, "7", True, 1), (CORRECT, "1", True, 1)])
    assert figures_of(to_batch([problem]), np.array([1, 1, 0.1], np.float32))["weighted_at_k"] == 1
    assert figures_of(to_batch([problem]), None)["maj_at_k"] == 1
    unchecked = group("b", [(ERROR, "7", True, 1)] * 3)
    # The votes are over the one problem that could be checked.
    assert figures_of(to_batch([problem, unchecked]), None)["maj_at_k"] == 1


def test_only_a_single_complete_box_votes():
    """Two boxes, or an empty one, give no vote, nor does a wrong answer that the verifier does not name."""
    without = [(FORMAT, "2", True, 1)] * 3 + [(NO_ANSWER, "", True, 1)] * 3 + [(WRONG, None, True, 1)] * 3
    assert figures_of(to_batch([group("a", [*without, (CORRECT, "1", True, 1)])]), None)["maj_at_k"] == 1
    assert figures_of(to_batch([group("a", without)]), None)["maj_at_k"] == 0, "no vote, but checked"


def test_wrong_answers_are_pooled_however_they_are_written():
    samples = [(WRONG, "0.5", True, 1), (WRONG, r"\frac12", True, 1), (CORRECT, "1", True, 1)]
    assert figures_of(to_batch([group("a", samples)]), None)["maj_at_k"] == 0


def test_an_empty_box_is_not_pooled_with_right_answers():
    batch = to_batch(
        [group("a", [(NO_ANSWER, "", True, 1), (CORRECT, "1", True, 1), (CORRECT, "1.0", True, 1)])]
    )
    assert figures_of(batch, None)["maj_at_k"] == 1


def test_a_truncated_solution_votes_plainly_but_has_no_weight():
    cut = to_batch([group("a", [(CORRECT, "1", False, 1), (CORRECT, "1", False, 1), (WRONG, "2", True, 1)])])
    figures = figures_of(cut, np.array([NAN, NAN, 0.1], np.float32))
    assert figures["maj_at_k"] == 1
    assert figures["weighted_at_k"] == 0


def test_answers_of_unlike_problems_are_not_pooled():
    batch = to_batch(
        [
            group("a", [(CORRECT, "1", True, 1), (WRONG, "2", True, 1)]),
            group("b", [(WRONG, "1", True, 1), (CORRECT, "2", True, 1)]),
        ]
    )
    assert figures_of(batch, None)["maj_at_k"] == 1 / 2, "tied answers share"
    one, other = [(CORRECT, "1", True, 1)], [(WRONG, "2", True, 1)]
    for samples in (one + other, other + one):
        figures = figures_of(to_batch([group("a", samples), group("b", one + one)]), None)
        assert figures["maj_at_k"] == (1 / 2 + 1) / 2, "in any order"


def test_scores_outside_zero_to_one_are_clipped_for_the_vote_only():
    batch = to_batch([group("a", [(CORRECT, "1", True, 1), (WRONG, "2", True, 1), (WRONG, "2", True, 1)])])
    figures = figures_of(batch, np.array([3.0, 0.6, 0.6], np.float32))
    assert figures["weighted_at_k"] == 0  # 1 against 1.2
    assert figures["auroc"] == 1
    negative = figures_of(batch, np.array([0.1, -5.0, 0.05], np.float32))
    assert negative["weighted_at_k"] == 1, "a negative score takes no vote away"


def test_without_self_reward_there_are_no_figures_of_it(batch):
    figures = figures_of(batch, None)
    assert figures["accuracy"] == pytest.approx(3 / 7)
    assert figures["maj_at_k"] == 1 / 2
    undefined = {name for name, value in figures.items() if math.isnan(value)}
    assert undefined == {
        "self_verification_f1", "accuracy_correct", "accuracy_wrong", "auroc", "auroc_within_problem",
        "auroc_problem_only", "ece", "weighted_at_k",
    }  # fmt: skip


def test_figures_that_the_samples_do_not_define_are_nan_and_not_printed():
    """All cut off: nothing to score; all unchecked: no accuracy either."""
    cut = to_batch([group("a", [(NO_ANSWER, None, False, 5), (NO_ANSWER, None, False, 5)])])
    figures = figures_of(cut, np.array([NAN, NAN], np.float32))
    assert (figures["accuracy"], figures["finished_share"]) == (0, 0)
    assert math.isnan(figures["self_verification_f1"])
    assert headline_of("step 0", figures) == "step 0: accuracy 0.000  Maj@k 0.000"
    unchecked = figures_of(to_batch([group("a", [(TIMEOUT, None, True, 5)])]), np.array([0.5], np.float32))
    assert math.isnan(unchecked["accuracy"])
    assert math.isnan(unchecked["auroc"])


@pytest.mark.parametrize("correct", [True, False])
def test_scores_of_one_class_can_be_drawn(correct):
    figure = score_figure(np.array([0.2, 3.0], np.float32), np.array([correct, correct]), "test")
    drawn = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert drawn == 2  # the score of 3 lies within the axis


SCORED_RESPONSES = {
    "1/2": [
        (r"\boxed{0.5}", 0.75), (r"\boxed{3}", 0.25), (r"\boxed{\frac{6}{2}}", 0.125),
        (r"\boxed{\frac12}", 0.5), (r"\boxed{9^{9^{9^9}}}", 1.0), ("I do not know", -0.5),
    ],
    "x+1": [
        (r"\boxed{x+2}", 0.25), (r"\boxed{1+x}", 1.5), (r"\boxed{2+x}", 0.25), (r"\boxed{}", 0.1),
        (r"\boxed{x+1} and again \boxed{x+1}", 0.3), (r"\boxed{x", NAN),
    ],
    r"\frac{1}{": [(r"\boxed{1}", 0.9), (r"\boxed{1}", 0.8), (r"\boxed{2}", 0.1), (r"\boxed{1}", 0.7)] +
    [(r"\boxed{3}", 0.2)] * 2, "4": [
        (r"\boxed{5}", 0.5), (r"\boxed{6}", 0.0), (r"\boxed{4}", 0.5), (r"\boxed{7}", 0.0),
        (r"\boxed{05}", 0.25), (r"\boxed{4.0}", 0.25),
    ],
}  # fmt: skip
"""Responses by reference, with exact float32 scores for the votes. Nobody can read the third reference."""


@pytest.fixture
def verifiers(ray_cluster):
    """One real verification worker, which gives up on a check after two seconds; math-verify can hang."""
    worker = ray.remote(VerificationWorker).options(num_cpus=0, max_concurrency=2)
    pool = Pool("verification", lambda index: worker.remote(PLAIN_VERIFIER, timeout_s=2.0), 1, capacity=2)
    pool.wait_ready(120)
    yield pool
    pool.stop()


def test_training_and_laser_eval_give_equal_figures_for_equal_samples(verifiers, tmp_path):
    """Statuses of every kind, equal answers written in two ways, and ties of plain and of weighted votes."""
    groups = {reference: [] for reference in SCORED_RESPONSES}
    for reference, responses in SCORED_RESPONSES.items():
        texts, ended = zip(*((text, not math.isnan(score)) for text, score in responses), strict=True)
        verifiers.submit(
            "verify",
            list(texts),
            list(ended),
            Problem.from_text(reference, "?", reference),
            context=reference,
        )
    for _, task, verdicts in finished(verifiers):
        ended = [not math.isnan(score) for _, score in SCORED_RESPONSES[task.context]]
        samples = [(*pair, 10 + place) for place, pair in enumerate(zip(verdicts, ended, strict=True))]
        rows = [
            (verdict.status, verdict.answer, is_finished, tokens) for verdict, is_finished, tokens in samples
        ]
        groups[task.context] = group(task.context, rows, "fraction" if "frac" in task.context else None)
    batch = to_batch(list(groups.values()))
    assert {verdict.status for verdict in batch.verdicts} == set(Status) - {Status.MEMORY}  # as TIMEOUT
    scores = np.array(
        [score for responses in SCORED_RESPONSES.values() for _, score in responses], np.float32
    )
    classes = pool_answers(
        verifiers, [one.verdicts for one in batch.groups], [verifier_text(PLAIN_VERIFIER)] * len(batch.groups)
    )
    trained = held_out_figures(set_results("set", columns_of_batch(batch, scores, classes), tables=False))

    file = SampleFile(tmp_path)
    for one in batch.groups:
        reference = one.problem.id
        file.append(
            [
                EvalSample(
                    set="set",
                    problem_id=reference,
                    problem=one.problem.text,
                    reference=reference,
                    kind=one.problem.kind,
                    sample=place,
                    seed=place,
                    response=text,
                    tokens=10 + place,
                    finished=not math.isnan(score),
                    status="error",  # checked again
                    answer=None,
                    answer_class=None,
                    z_logprob=NAN,
                    score=float(np.float32(score)),
                )
                for place, (text, score) in enumerate(SCORED_RESPONSES[reference])
            ]
        )
    settings = {"samples": str(file.path), "folder": str(tmp_path / "again"), "dir": str(tmp_path)}
    settings |= {"verification.cpus": 0.5, "verification.timeout_s": 2.0}
    settings |= {"verification.verifier": PLAIN_VERIFIER}
    results = evaluate(
        load_eval(None, settings, []), EvalProgress(Console(file=(tmp_path / "out").open("w")))
    )
    assert held_out_figures(results.sets[0]) == trained
    stored = json.loads((results.folder / "results.json").read_text())["sets"][0]
    assert {name: stored["figures"].get(name, stored.get(name)) for name in trained} == trained

    # "1/2": two correct answers tie with two wrong ones. "x+1": one against two. "4": a tie of the four most
    # frequent answers' two pairs. Nobody can judge the third problem.
    assert trained["maj_at_k"] == pytest.approx((1 / 2 + 0 + 1 / 2) / 3)
    # 1.25 against 0.375; 1 against 0.5; 0.75 against 0.75.
    assert trained["weighted_at_k"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert trained["unverified"] == 7
    assert trained["accuracy"] == pytest.approx(5 / 17)  # over samples: the mean over problems would be 0.3
    assert not any(math.isnan(value) for value in trained.values())
