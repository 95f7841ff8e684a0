"""From a verifier's settings to something that checks: the project's verifiers, and a user's own.

In: the canonical text of the settings. Out: a `LoadedVerifier`. `run_check` and `same_answers` are what child
processes call.
"""

import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from actors.child_main import load_function
from orchestrator.config.verifiers import OwnSettings, VerifierSettings, settings_of_text
from orchestrator.errors import ConfigError
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

Check = Callable[[str, Problem], Verdict | Awaitable[Verdict]]
"""What checks a response to a problem."""

MODULES: Mapping[str, str] = {
    "math": "actors.verifiers.mathematics:Mathematics",
    "math_verify_plain": "actors.verifiers.mathematics:PlainMathematics",
    "number": "actors.verifiers.number:NumberVerifier",
    "choice": "actors.verifiers.choice:ChoiceVerifier",
    "text": "actors.verifiers.text:TextVerifier",
    "token_f1": "actors.verifiers.text:TokenF1Verifier",
    "json": "actors.verifiers.json_value:JsonVerifier",
    "code": "actors.verifiers.code:CodeVerifier",
    "judge": "actors.verifiers.judge:JudgeVerifier",
    "pattern": "actors.verifiers.pattern:PatternVerifier",
}
"""The class of each verifier of the project that checks by itself."""

PROBLEM_NAMES = ("problem", "row", "task")
REFERENCE_NAMES = ("reference", "answer", "gold", "ground_truth", "target", "solution")
"""Names of a verifier's second parameter, which say what it takes where no annotation does."""


@dataclass(frozen=True)
class LoadedVerifier:
    """A verifier, ready to be called."""

    check: Check
    is_async: bool
    answer: Callable[[str], str | None] | None
    """The answer that a response states, for votes."""
    same: Callable[[str, str], bool] | None
    """Whether two answers are the same, for votes."""

    @property
    def votes(self) -> bool:
        """Whether its answers can be pooled."""
        return self.answer is not None and self.same is not None


@lru_cache(maxsize=256)
def loaded_verifier(text: str) -> LoadedVerifier:
    """The verifier with these settings.

    Raises:
        ConfigError: It cannot be imported or called, or it refuses its settings.
    """
    settings = settings_of_text(text)
    if isinstance(settings, OwnSettings):
        return own_verifier(settings)
    return _loaded(_class_of(settings)(settings), passes_problem=True)


def _class_of(settings: VerifierSettings) -> Any:
    module, _, name = MODULES[settings.name].partition(":")
    return getattr(importlib.import_module(module), name)


def offers_votes(settings: VerifierSettings) -> bool:
    """Whether a verifier has `answer` and `same`.

    Raises:
        ConfigError: It is a user's own, and cannot be used.
    """
    if isinstance(settings, OwnSettings):
        return own_verifier(settings).votes
    return settings.name in MODULES and hasattr(_class_of(settings), "same")


def own_verifier(settings: OwnSettings) -> LoadedVerifier:
    """A user's verifier: the callable at the import path, or what it makes of `settings`.

    Raises:
        ConfigError: It cannot be imported, its settings are refused, or its second parameter does not say
            whether it takes the problem or the reference.
    """
    found = load_function(settings.name)
    if settings.settings is not None:
        try:
            found = found(**settings.settings)
        except Exception as error:
            raise ConfigError(
                f"'{settings.name}' with {settings.settings}: {type(error).__name__}: {error}"
            ) from error
    elif inspect.isclass(found):
        raise ConfigError(f"'{settings.name}' is a class: give its arguments as `settings: {{}}`")
    if not callable(found):
        raise ConfigError(f"'{settings.name}' gave a {type(found).__name__}, which cannot be called")
    return _loaded(found, takes_problem(found, settings.name))


def _loaded(found: Any, passes_problem: bool) -> LoadedVerifier:
    is_async = any(map(inspect.iscoroutinefunction, (found, type(found).__call__)))
    check = found if passes_problem else _with_reference(found, is_async)
    return LoadedVerifier(check, is_async, getattr(found, "answer", None), getattr(found, "same", None))


def takes_problem(function: Callable[..., Any], name: str) -> bool:
    """Whether a verifier's second parameter is the whole `Problem`; otherwise it is the reference.

    The annotation says so (`Problem` or `str`), or without one the parameter's name.

    Raises:
        ConfigError: Neither says so, they contradict each other, or it does not take two arguments.
    """
    advice = "write (response: str, problem: Problem), or (response: str, reference: str)"
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"'{name}': its parameters cannot be read; {advice}") from error
    positional = [
        each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    required = [
        each for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    ]
    if len(positional) < 2 or any(each not in positional[:2] for each in required):
        raise ConfigError(f"'{name}' does not take two arguments; {advice}")
    second = positional[1]
    annotation = second.annotation
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    by_name = second.name in PROBLEM_NAMES if second.name in PROBLEM_NAMES + REFERENCE_NAMES else None
    by_annotation = {"Problem": True, "str": False}.get(written.rpartition(".")[2])
    if by_annotation is None and annotation is not second.empty:
        raise ConfigError(f"'{name}': '{second.name}: {written}' is neither a Problem nor a str; {advice}")
    if by_annotation is None and by_name is None:
        raise ConfigError(f"'{name}': is '{second.name}' the problem or the reference? {advice}")
    if None not in (by_annotation, by_name) and by_annotation != by_name:
        raise ConfigError(f"'{name}': '{second.name}: {written}' may mean either; {advice}")
    return bool(by_name if by_annotation is None else by_annotation)


def _with_reference(function: Callable[..., Any], is_async: bool) -> Check:
    """A verifier of the reference alone, called with the problem."""
    missing = Verdict(Status.ERROR, None, "the problem has no reference answer, which its verifier needs")

    async def check_async(response: str, problem: Problem) -> Verdict:
        return missing if problem.reference is None else await function(response, problem.reference)

    def check(response: str, problem: Problem) -> Verdict:
        return missing if problem.reference is None else function(response, problem.reference)

    return check_async if is_async else check


def run_check(text: str, response: str, problem: Problem) -> Any:
    """Check one response; a coroutine where the verifier is `async`."""
    return loaded_verifier(text).check(response, problem)


def same_answers(text: str, first: str, second: str) -> bool:
    """Whether two answers are the same by a verifier's `same`."""
    same = loaded_verifier(text).same
    assert same is not None, "only a verifier that votes is asked"
    return same(first, second)
