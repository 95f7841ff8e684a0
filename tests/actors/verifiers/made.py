"""Problems and checks for the tests of verifiers."""

from typing import Any

from actors.verifiers.loading import loaded_verifier
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import CORRECT_ABOVE, Verdict


def about(reference: str | None, **fields: Any) -> Problem:
    """A problem with this reference and these fields."""
    return Problem.from_text("p", "What is it?", reference, fields=fields)


def verdict_of(choice: Any, response: str, problem: Problem | str | None) -> Verdict:
    """The settled verdict of a synchronous verifier."""
    problem = problem if isinstance(problem, Problem) else about(problem)
    verdict = loaded_verifier(verifier_text(choice)).check(response, problem)
    assert isinstance(verdict, Verdict)
    return verdict.settled(CORRECT_ABOVE)
