"""Verifiers of a user's own, which the tests load by import path."""

import asyncio
import time

from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict


def whole(response: str, problem: Problem) -> Verdict:
    return Verdict(Status.CORRECT if response == problem.fields["secret"] else Status.WRONG, response)


def by_text(response: str, gold: str) -> Verdict:
    return Verdict(Status.CORRECT if response == gold else Status.WRONG)


def by_name(response, ground_truth):
    return Verdict(Status.CORRECT if response == ground_truth else Status.WRONG)


def unclear(response, thing):
    return Verdict(Status.WRONG)


def contradicting(response: str, problem: str) -> Verdict:
    return Verdict(Status.WRONG)


def numbers(response: str, reference: int) -> Verdict:
    return Verdict(Status.WRONG)


def three(response, reference, more):
    return Verdict(Status.WRONG)


class Prefix:
    """Right where the response begins with a text; graded by its length."""

    def __init__(self, text, bonus=0.0):
        self.text, self.bonus = text, bonus

    def __call__(self, response: str, problem: Problem) -> Verdict:
        return Verdict(Status.WRONG, response, reward=self.bonus if response.startswith(self.text) else 0.0)

    def answer(self, response):
        return response[:1]

    def same(self, first, second):
        return first.lower() == second.lower()


def too_large(response: str, problem: Problem) -> Verdict:
    return Verdict(Status.WRONG, reward=1.5)


def hang(response: str, problem: Problem) -> Verdict:
    if response == "hang":
        time.sleep(60)
    return Verdict(Status.CORRECT)


async def slow(response: str, problem: Problem) -> Verdict:
    """An `async` verifier: as many tenths of a second as the response says."""
    await asyncio.sleep(float(response) / 10)
    return Verdict(Status.CORRECT, response)
