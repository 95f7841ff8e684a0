"""Votes over the solutions of one request, by the rules of `laser eval`.

In: a function that draws solutions. Out: the winner, and how the votes fell.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

from actors.boxes import only_answer
from actors.pooling import AnswerComparer, AnswerPool
from orchestrator.algorithm.adaptive import AdaptiveVote, StopRule
from orchestrator.messages.problems import judged_part
from orchestrator.serving.requests import Vote
from orchestrator.serving.solutions import Solution, Tally

Draw = Callable[[range], Awaitable[list[Solution]]]
"""Draws the solutions with these numbers, which count from 0 within a request."""


async def vote(
    request: Vote,
    draw: Draw,
    comparer: AnswerComparer,
    answer_of: Callable[[str], str | None] = only_answer,
    answer_after: str = "",
) -> tuple[Solution, Tally]:
    """Draw solutions until their vote is settled.

    A solution votes when it states an answer: by default exactly one complete box that is not empty. After
    each round all answers so far are pooled again and all votes are counted again, in the order of the
    solutions' numbers, so that the outcome does not depend on the order in which solutions end.

    Args:
        answer_of: The answer that a solution states; None where it states none.
        answer_after: A solution's answer follows this text; see `judged_part`.

    Returns:
        Of the solutions with the winning answer the one with the highest self-reward (of all solutions, when
        none votes), and the tally.

    Raises:
        ConfigError: The process that compares answers did not start; the next vote starts it again.
    """
    pool = AnswerPool(comparer)
    rule = _stop_rule(request)
    solutions: list[Solution] = []
    while True:
        solutions += await draw(_next_numbers(request, len(solutions)))
        judged = [judged_part(solution.text, answer_after) for solution in solutions]
        answers = [None if text is None else answer_of(text) for text in judged]
        classes = await _classes(pool, answers)
        count = AdaptiveVote(rule)
        for class_, solution in zip(classes, solutions, strict=True):
            score = math.nan if solution.self_reward is None else solution.self_reward
            count.add(class_, score, solution.tokens)
        if count.settled:
            return _best(solutions, classes, count.winner), _tally(request, count, answers, classes)


def _stop_rule(request: Vote) -> StopRule:
    weighted, adaptive = request.vote == "weighted", request.adaptive
    if adaptive is None:
        return StopRule(1.0, request.most_samples, request.most_samples, weighted)
    return StopRule(adaptive.confidence, adaptive.min_samples, adaptive.max_samples, weighted)


def _next_numbers(request: Vote, drawn: int) -> range:
    """The solutions of the next round: the first round draws at least as many as the rule asks for."""
    most, adaptive = request.most_samples, request.adaptive
    count = most if adaptive is None else adaptive.parallel
    if adaptive is not None and not drawn:
        count = max(count, adaptive.min_samples)
    return range(drawn, min(drawn + count, most))


async def _classes(pool: AnswerPool, answers: Sequence[str | None]) -> list[int]:
    """The class of each answer, -1 for None."""
    voting = [answer for answer in answers if answer is not None]
    try:
        found = iter(await asyncio.to_thread(pool.classes, voting))
    except asyncio.CancelledError:
        pool.abandon()
        raise
    return [-1 if answer is None else next(found) for answer in answers]


def _best(solutions: Sequence[Solution], classes: Sequence[int], winner: int | None) -> Solution:
    voters = [solution for solution, class_ in zip(solutions, classes, strict=True) if class_ == winner]
    return max(
        voters or solutions,
        key=lambda solution: -math.inf if solution.self_reward is None else solution.self_reward,
    )


def _tally(
    request: Vote, count: AdaptiveVote, answers: Sequence[str | None], classes: Sequence[int]
) -> Tally:
    """The outcome in words; a class is called by its first answer."""
    texts: dict[int, str] = {}
    for class_, answer in zip(classes, answers, strict=True):
        if answer is not None:
            texts.setdefault(class_, answer)
    winner = count.winner
    return Tally(
        samples=count.samples,
        tokens=count.tokens,
        answer=None if winner is None else texts[winner],
        votes={texts[class_]: votes for class_, votes in count.votes.items()},
        settled=request.adaptive is None or count.samples < request.most_samples,
    )
