"""Checks the responses to one problem, each check under a hard deadline.

In: response texts and a `Problem`. Out: a `Verdict` for each; a check that timed out or failed is never a
wrong answer. `VerificationWorker` is the verification pool's Ray actor. This module imports no Ray, because
the child process of every worker imports it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.boxes import find_boxes, only_answer
from actors.budget import BudgetShare
from actors.checking import CheckPools, refuse_unusable
from actors.math_check import verify_math as verify_math  # saved configurations name it here
from actors.pooling import EQUALITY, PLAIN_EQUALITY, AnswerComparer, AnswerPool
from actors.progress import report_progress
from actors.verifiers.loading import loaded_verifier, offers_votes
from actors.verifiers.weighted import combined
from orchestrator.config.verifiers import (
    VerifierSettings,
    WeightedSettings,
    parts_of,
    settings_of_text,
    settings_text,
    verifier_text,
)
from orchestrator.errors import ConfigError
from orchestrator.messages.problems import Problem, judged_part
from orchestrator.messages.verdicts import CORRECT_ABOVE, UNJUDGED, Status, Verdict

DEFAULT_VERIFIER = "math"
DEFAULT_TIMEOUT_S = 10.0
"""Seconds that one check or comparison may take, where no settings say so."""
DEFAULT_MEMORY_MIB = 2048
"""MiB that one check or comparison may take, where no settings say so."""
LONGEST_DETAIL = 2_000
"""Characters of a verdict's explanation; what stands between its beginning and its end is left out."""
PLAIN_VERIFIER = "actors.verification:verify_math"

BOXES_ONLY = ("math", "math_verify_plain")
"""Verifiers that read nothing of a response but its boxes, and nothing of a problem but its reference."""


def can_vote(text: str) -> bool:
    """Whether the answers of a verifier can be pooled for votes: it offers `answer` and `same`."""
    return voting_part(text) is not None


def voting_part(text: str) -> str | None:
    """The text of the verifier that pools answers: itself, or the first part of a weighted one that can."""
    parts = parts_of(settings_of_text(text))
    return next((settings_text(part) for part in parts if offers_votes(part)), None)


@dataclass(frozen=True)
class VotingRule:
    """How the answers of one verifier are found and compared."""

    answer_of: Callable[[str], str | None]
    comparer: AnswerComparer


def voting_rule(text: str | None) -> VotingRule | None:
    """The rule of a verifier's canonical text; None where its answers cannot be compared on this machine.

    Without a text answers are boxes, compared as mathematics.
    """
    if text is None:
        return VotingRule(only_answer, AnswerComparer())
    try:
        part = voting_part(text)
        answer_of = None if part is None else loaded_verifier(part).answer
    except ConfigError:  # a service may lack the module of a verifier of the user's own
        return None
    if part is None:
        return None
    assert answer_of is not None, "a verifier that votes has it"
    return VotingRule(answer_of, _comparer_of(part, DEFAULT_TIMEOUT_S, DEFAULT_MEMORY_MIB))


class VerificationWorker:
    """An actor of the verification pool: it runs checks in child processes, one for each verifier in use.

    A verifier that is `async` has many checks at a time in its child, another one has one. Several threads
    may call the worker, so that it answers `ping` during a check.

    Args:
        verifier: Name, import path or canonical text of the verifier of problems that name none.
        timeout_s: Seconds that one check may take, where its verifier does not say.
        cache_size: Verdicts that are kept, the least recently used ones dropped first.
        correct_above: A reward above it is called correct.
        others: Canonical texts of the other verifiers, which start before the first check.
        share: Of a judge's budget; a budget of its own unless given.
        memory_mib: MiB that one check may take; without a limit when None.

    Raises:
        ConfigError: A verifier cannot be used on this node, or a child process did not start.
    """

    def __init__(
        self,
        verifier: str = DEFAULT_VERIFIER,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        cache_size: int = 20_000,
        correct_above: float = CORRECT_ABOVE,
        others: Iterable[str] = (),
        share: BudgetShare | None = None,
        memory_mib: int | None = DEFAULT_MEMORY_MIB,
    ) -> None:
        report_progress()
        self._memory_mib = memory_mib
        self._verifier = verifier if verifier.startswith("{") else verifier_text(verifier)
        self._timeout_s = timeout_s
        self._correct_above = correct_above
        texts = list(dict.fromkeys([self._verifier, *others]))
        refuse_unusable(texts)
        self._children = CheckPools(timeout_s, share, memory_mib)
        for text in texts:
            for part in parts_of(settings_of_text(text)):
                self._children.start(part)
        self._comparers: dict[str, AnswerComparer] = {}
        self._cache: OrderedDict[tuple[Any, ...], Verdict] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()

    def verify(self, texts: list[str], finished: list[bool], problem: Problem) -> list[Verdict]:
        """A verdict for each response to one problem, in order.

        A truncated response counts like any other when it holds one complete box, as in the paper's reward.
        Equal responses share one check; for `math` those with equal boxes do. A timeout or an error may come
        from a busy machine, so the next call checks that response again. Where the problem says after which
        text its answers follow, only that part is checked, and a response without it has no answer.

        Args:
            finished: Whether each response ended by itself; it only makes the detail of a missing answer
                clearer.
        """
        judged = [judged_part(text, problem.answer_after) for text in texts]
        finished = [ended and part is not None for ended, part in zip(finished, judged, strict=True)]
        texts = [part or "" for part in judged]
        settings = settings_of_text(problem.verifier or self._verifier)
        keys = [self._key(settings, text, problem) for text in texts]
        with self._lock:
            known = {key: verdict for key in keys if (verdict := self._cached(key)) is not None}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        verdicts = map(_storable, self._check_all(settings, list(new.values()), problem))
        checked = dict(zip(new, verdicts, strict=True))
        with self._lock:
            for key, verdict in checked.items():
                self._remember(key, verdict)
        found = []
        for key, is_finished in zip(keys, finished, strict=True):
            verdict = known[key] if key in known else checked[key]
            known[key] = replace(verdict, seconds=None)  # the next one shares this check
            if verdict.status is Status.NO_ANSWER and not is_finished:
                verdict = replace(verdict, detail=f"{verdict.detail}: the response was cut off")
            found.append(verdict)
        return found

    def pool_answers(self, answers: list[str], verifier: str | None = None) -> list[int]:
        """The class of each answer to one problem. Equal answers share a class; classes count by appearance.

        A comparison that times out or fails means "not equal" and is counted.

        Args:
            verifier: Canonical text of the problem's verifier; the worker's own unless given.
        """
        return AnswerPool(self._comparer(verifier or self._verifier)).classes(answers)

    def pooling_stats(self) -> dict[str, int]:
        """Counts of `pool_answers`: `comparisons`, and those that ended in `timeout`, `memory` or `error`."""
        with self._lock:
            comparers = list(self._comparers.values())
        return {
            name: sum(comparer.counts[name] for comparer in comparers) for name in ("comparisons", *UNJUDGED)
        }

    def ping(self) -> bool:
        return True

    def close(self) -> None:
        """Kill the child processes."""
        self._children.close()
        for comparer in self._comparers.values():
            comparer.close()

    def _check_all(
        self, settings: VerifierSettings, responses: Sequence[str], problem: Problem
    ) -> list[Verdict]:
        """New verdicts, with the time that each took."""
        if not responses:
            return []
        if settings.name in BOXES_ONLY:  # the rest need not travel to the child with each response
            problem = replace(problem, messages=(), fields={})
        if not isinstance(settings, WeightedSettings):
            return [
                self._judged(outcome, response, problem, seconds)
                for response, (outcome, seconds) in zip(
                    responses, self._children.check(settings, responses, problem), strict=True
                )
            ]
        parts = {
            name: self._check_all(settings_of_text(verifier_text(part.verifier)), responses, problem)
            for name, part in settings.parts.items()
        }
        verdicts = []
        for number in range(len(responses)):
            each = {name: found[number] for name, found in parts.items()}
            seconds = sum(verdict.seconds or 0.0 for verdict in each.values())
            whole = replace(combined(settings, each), seconds=seconds)
            verdicts.append(whole.settled(self._correct_above))
        return verdicts

    def _judged(self, outcome: Any, response: str, problem: Problem, seconds: float) -> Verdict:
        """The verdict of a check that returned or raised `outcome`."""
        if isinstance(outcome, Verdict):
            return replace(outcome, seconds=seconds).settled(self._correct_above)
        answer = find_boxes(response).last
        if not isinstance(outcome, Exception):
            detail = f"the verifier returned {type(outcome).__name__}, not a Verdict"
            return Verdict(Status.ERROR, answer, detail, seconds)
        against = f"the check against {problem.reference!r}"
        if isinstance(outcome, TimeoutError | MemoryError):
            status = Status.TIMEOUT if isinstance(outcome, TimeoutError) else Status.MEMORY
            return Verdict(status, answer, f"{against} {outcome}", seconds)
        return Verdict(Status.ERROR, answer, f"{against} failed: {outcome}", seconds)

    def _comparer(self, text: str) -> AnswerComparer:
        with self._lock:
            if text not in self._comparers:
                part = voting_part(text)
                assert part is not None, "only answers that can be pooled are sent"
                self._comparers[text] = _comparer_of(part, self._timeout_s, self._memory_mib)
            return self._comparers[text]

    def _key(self, settings: VerifierSettings, response: str, problem: Problem) -> tuple[Any, ...]:
        """Responses with the same key have the same verdict."""
        if settings.name in BOXES_ONLY:
            return settings.name, problem.reference, find_boxes(response)
        verifier = problem.verifier or self._verifier
        return verifier, problem.source, problem.id, problem.reference, response

    def _cached(self, key: tuple[Any, ...]) -> Verdict | None:
        if key in self._cache:
            self._cache.move_to_end(key)
        return self._cache.get(key)

    def _remember(self, key: tuple[Any, ...], verdict: Verdict) -> None:
        if verdict.status in UNJUDGED:
            return
        self._cache[key] = replace(verdict, seconds=None)
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)


def _storable(verdict: Verdict) -> Verdict:
    """The verdict as files can hold it: without lone surrogates, and with a detail of bounded length."""
    answer, detail = verdict.answer and _encodable(verdict.answer), _encodable(verdict.detail)
    if len(detail) > LONGEST_DETAIL:  # the end of a traceback says what failed
        detail = f"{detail[: LONGEST_DETAIL // 2]} ... {detail[-LONGEST_DETAIL // 2 :]}"
    if (answer, detail) == (verdict.answer, verdict.detail):
        return verdict
    return replace(verdict, answer=answer, detail=detail)


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _comparer_of(text: str, timeout_s: float, memory_mib: int | None) -> AnswerComparer:
    name = settings_of_text(text).name
    if name in BOXES_ONLY:
        equality = EQUALITY if name == DEFAULT_VERIFIER else PLAIN_EQUALITY
        return AnswerComparer(timeout_s, equality, memory_mib=memory_mib)
    equality = "actors.verifiers.loading:same_answers"
    return AnswerComparer(timeout_s, equality, first_arguments=(text,), memory_mib=memory_mib)
