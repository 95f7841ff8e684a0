r"""The verifiers `math` and `math_verify_plain`: the one \boxed{} of a response as mathematics.

In: a response and a problem with a reference. Out: a `Verdict`; see docs/verification.md.
"""

from collections.abc import Callable

from actors.answers.compare import same as same_values
from actors.answers.verdict import verify_answer
from actors.boxes import only_answer
from actors.math_check import equal_answers, verify_math
from orchestrator.config.verifiers import VerifierSettings
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

NO_REFERENCE = Verdict(Status.ERROR, None, "the problem has no reference answer")


class Mathematics:
    """The verifier `math`."""

    compare: Callable[[str, str], Verdict] = staticmethod(verify_answer)

    def __init__(self, settings: VerifierSettings) -> None:
        self.settings = settings

    def __call__(self, response: str, problem: Problem) -> Verdict:
        return NO_REFERENCE if problem.reference is None else self.compare(response, problem.reference)

    def answer(self, response: str) -> str | None:
        """The text of the only box."""
        return only_answer(response)

    def same(self, first: str, second: str) -> bool:
        """Whether two answers have one value."""
        return same_values(first, second)


class PlainMathematics(Mathematics):
    """The verifier `math_verify_plain`."""

    compare = staticmethod(verify_math)

    def same(self, first: str, second: str) -> bool:
        """Whether math-verify takes either answer for the other."""
        return equal_answers(first, second)
