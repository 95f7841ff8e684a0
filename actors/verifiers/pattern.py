"""The verifier `pattern`: a regular expression that the response must match.

In: a response. Out: a `Verdict`. An expression that backtracks for ever ends at the check's deadline, because
it runs in a process that can be killed.
"""

import re

from orchestrator.config.verifiers import PatternSettings
from orchestrator.errors import ConfigError
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict


class PatternVerifier:
    """The verifier `pattern`."""

    def __init__(self, settings: PatternSettings) -> None:
        try:
            self._expression = re.compile(settings.pattern)
        except re.error as error:
            raise ConfigError(f"verifier 'pattern', pattern: is no regular expression ({error})") from error
        self._whole = settings.whole

    def __call__(self, response: str, problem: Problem) -> Verdict:
        search = self._expression.fullmatch if self._whole else self._expression.search
        if search(response) is None:
            return Verdict(Status.FORMAT, None, "the pattern does not match")
        return Verdict(Status.CORRECT, None, "the pattern matches")
