"""Votes of the service over given solutions, by the rules of an evaluation."""

import asyncio
import itertools
import math
import threading
from contextlib import closing

import numpy as np
import pytest

from actors.deadline import DeadlineExecutor
from actors.pooling import PLAIN_EQUALITY, AnswerComparer
from actors.verification import VerificationWorker, voting_rule
from orchestrator.algorithm.voting import majority_vote, pooled_votes, vote_weights
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status
from orchestrator.serving.requests import Adaptive, Vote
from orchestrator.serving.solutions import Solution
from orchestrator.serving.voting import vote

TEXTS = [
    r"\boxed{1/2}",
    r"it is \boxed{0.5}",
    r"\boxed{3}, or rather \boxed{4}",
    r"\boxed{4}",
    r"\boxed{}",
    r"\boxed{\frac12} and \boxed{",
    "no answer",
    r"so \boxed{x=4}",
    r"\boxed{7}",
]
SCORES = [0.4, 0.7, 0.9, 0.3, 1.0, 0.8, 1.0, None, 1.4]


@pytest.fixture(scope="module")
def comparer():
    with closing(AnswerComparer()) as comparer:
        yield comparer


def solution(text, score=None):
    finished = score is not None
    return Solution(text, 10, finished, False, -20.0 if finished else None, score, [])


def voted(request, comparer, texts=TEXTS, scores=SCORES):
    """The winner and the tally over given solutions, and the rounds in which they were drawn."""
    solutions = [solution(text, score) for text, score in zip(texts, scores, strict=True)]
    rounds = []

    async def draw(numbers):
        rounds.append(list(numbers))
        return [solutions[number] for number in numbers]

    winner, tally = asyncio.run(vote(request, draw, comparer))
    return winner, tally, rounds


@pytest.mark.parametrize("reference", ["0.5", "4", "9"])
@pytest.mark.parametrize("kind", ["weighted", "majority"])
def test_the_vote_is_that_of_an_evaluation_of_the_same_samples(comparer, kind, reference):
    with closing(VerificationWorker()) as worker:
        verdicts = worker.verify(
            TEXTS, [score is not None for score in SCORES], Problem.from_text("p", "?", reference)
        )
        wrong = worker.pool_answers(
            [verdict.answer for verdict in verdicts if verdict.status == Status.WRONG]
        )
    others = iter(wrong)
    classes = [
        0 if verdict.status == Status.CORRECT else 1 + next(others) if verdict.status == Status.WRONG else -1
        for verdict in verdicts
    ]
    scores = np.array([math.nan if score is None else score for score in SCORES])
    weights = vote_weights(scores) if kind == "weighted" else np.ones(len(SCORES))
    winner, tally, _ = voted(Vote(vote=kind, n=len(TEXTS)), comparer)
    assert sorted(tally.votes.values()) == pytest.approx(sorted(pooled_votes(classes, weights).values()))
    assert classes[TEXTS.index(winner.text)] == majority_vote(classes, weights)


def test_only_a_solution_with_exactly_one_complete_box_that_is_not_empty_votes(comparer):
    winner, tally, rounds = voted(Vote(n=len(TEXTS)), comparer)
    assert tally.votes == pytest.approx({"1/2": 1.1, "4": 0.3, "7": 1.0})
    assert (tally.answer, winner.text) == ("1/2", TEXTS[1]), "the voter with the highest self-reward"
    assert (tally.samples, tally.tokens, tally.settled) == (9, 90, True)
    assert rounds == [list(range(9))]


def test_what_precedes_the_end_of_thinking_has_no_vote(comparer):
    texts = [r"\boxed{1}</think>\boxed{2}", r"\boxed{1}", r"</think>\boxed{2}"]

    async def draw(numbers):
        return [solution(texts[number]) for number in numbers]

    request = Vote(vote="majority", n=3)
    _, tally = asyncio.run(vote(request, draw, comparer, answer_after="</think>"))
    assert (tally.answer, tally.votes) == ("2", {"2": 2})


def test_votes_do_not_depend_on_the_order_of_solutions(comparer):
    texts, scores = [TEXTS[number] for number in (0, 1, 3, 7)], [0.1, 0.2, 0.4, 0.8]
    found = set()
    for order in itertools.permutations(range(4)):
        _, tally, _ = voted(
            Vote(n=4), comparer, [texts[index] for index in order], [scores[index] for index in order]
        )
        found.add(tuple(sorted(round(votes, 6) for votes in tally.votes.values())))
    assert found == {(0.3, 1.2)}


def test_without_a_vote_the_solution_with_the_highest_score_is_returned(comparer):
    winner, tally, _ = voted(Vote(n=3), comparer, ["a", r"\boxed{}", "c"], [0.2, 0.9, None])
    assert (winner.text, tally.answer, tally.votes) == (r"\boxed{}", None, {})


def test_adaptive_sampling_draws_until_the_vote_is_settled(comparer):
    texts, scores = [r"\boxed{1/2}", r"\boxed{0.5}"] * 8, [1.0] * 16
    rule = Adaptive(confidence=0.9, max_samples=16)
    _, tally, rounds = voted(Vote(adaptive=rule), comparer, texts, scores)
    # P(p > 1/2) under Beta(3 + 1, 1) is 1 - 1/16, the first above 0.9.
    assert rounds == [[0], [1], [2]]
    assert (tally.votes, tally.settled) == ({"1/2": 3.0}, True)
    rule = Adaptive(confidence=1, max_samples=5, min_samples=2, parallel=2)
    texts = [r"\boxed{1}", r"\boxed{2}"] * 8
    _, tally, rounds = voted(Vote(vote="majority", adaptive=rule), comparer, texts, scores)
    assert rounds == [[0, 1], [2, 3], [4]]
    assert (tally.answer, tally.votes, tally.settled) == ("1", {"1": 3.0, "2": 2.0}, False)


def test_a_vote_whose_client_left_compares_no_further():
    running = threading.Event()

    class Watched(DeadlineExecutor):
        def call(self, *args):
            running.set()
            return super().call(*args)

    texts = [r"\boxed{x+1}", r"\boxed{9^{9^{9^9}}}", r"\boxed{9^{9^{9^9}}+1}"]

    async def left(comparer):
        async def draw(numbers):
            return [solution(texts[number], 1.0) for number in numbers]

        task = asyncio.create_task(vote(Vote(n=3), draw, comparer))
        await asyncio.to_thread(running.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def start():
        return Watched(PLAIN_EQUALITY, 1.0, warm_up=(r"\frac12", "0.5"))

    with closing(AnswerComparer(start=start)) as comparer:
        asyncio.run(left(comparer))
        # asyncio.run waits for the thread.
        assert comparer.counts == {"comparisons": 1, "timeout": 1}


def test_a_rule_for_each_verifier():
    """Votes on letters; a verifier that cannot compare answers, or is not there, has none."""
    rule = voting_rule(verifier_text("choice"))
    texts = ["The answer is (B)", "no", "Answer: b", r"\boxed{A}"]
    answers = [rule.answer_of(text) for text in texts]
    assert answers == ["B", None, "B", "A"]
    boxes = voting_rule(None)
    assert [boxes.answer_of(text) for text in texts] == [None, None, None, "A"]
    assert voting_rule(verifier_text("token_f1")) is None
    assert voting_rule(verifier_text("nowhere:check")) is None
    parts = {"form": {"verifier": {"name": "pattern", "pattern": "x"}}, "answer": {"verifier": "number"}}
    weighted = voting_rule(verifier_text({"name": "weighted", "parts": parts}))
    try:
        assert weighted.comparer.equal("1,000", "1000.0")
        assert not weighted.comparer.equal("1", "2")
    finally:
        weighted.comparer.close()


def test_answers_of_another_verifier_are_pooled_by_it():
    with closing(VerificationWorker(verifier_text("text"))) as worker:
        assert worker.pool_answers(["Paris", "paris.", "007", "7", "Rome"]) == [0, 0, 1, 2, 3]
