"""The settings of verifiers: those that come with the project by name, and a user's own by import path.

In: a name, an import path, or a mapping of `name` and settings. Out: a `VerifierChoice` as it was written,
its typed settings, and one canonical text for both, which travels with each problem.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, ValidationError, ValidationInfo

from orchestrator.config.schema import PositiveFloat, PositiveInt, Section, Text, nearest_keys
from orchestrator.errors import ConfigError, DataError
from orchestrator.shown_text import is_secret_name


def _hidden(variable: str) -> str:
    if not is_secret_name(variable):
        raise ValueError(
            f"'{variable}' needs KEY, TOKEN, PASSWORD or SECRET in its name, because logs and reports hide "
            "the values of such variables only"
        )
    return variable


SecretVariable = Annotated[Text, AfterValidator(_hidden)]
"""Name of an environment variable whose value no log shows."""
RewardShare = Annotated[float, Field(ge=0, le=1)]
"""A share, or a reward."""


class VerifierSettings(Section):
    """What every verifier takes."""

    name: Text
    """Which verifier."""
    timeout_s: PositiveFloat | None = None
    """Seconds that one check may take; null means `verification.timeout_s`."""


class AnswerSettings(VerifierSettings):
    """A verifier that looks for an answer in the response."""

    answer_pattern: Text | None = None
    """Regular expression with one group, whose last match is the answer; null takes the box, else what
    follows the last `####` or `the answer is`."""


class MathSettings(VerifierSettings):
    r"""The one \boxed{} as mathematics: see docs/verification.md."""

    name: Literal["math"]


class PlainMathSettings(VerifierSettings):
    r"""The one \boxed{} by math-verify alone."""

    name: Literal["math_verify_plain"]


class NumberSettings(AnswerSettings):
    """A number near the reference."""

    name: Literal["number"]
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Allowed difference as a share of the reference: 0.01 is one percent."""
    absolute: Annotated[float, Field(ge=0)] = 0.0
    """Allowed difference as a number, in the reference's unit; the larger of both holds."""
    unit: Literal["optional", "required", "ignored"] = "optional"
    """optional: units convert and must agree where both are given; required: a reference's unit must be
    given; ignored: only numbers count."""
    bare_percent: bool = False
    """Whether 50 is also right for 50%; 0.5 always is."""
    last_number: bool = False
    """Whether the last number of a response is its answer where it states none."""


class ChoiceSettings(AnswerSettings):
    """One letter of several, or the words of that option."""

    name: Literal["choice"]
    letters: Annotated[str, Field(min_length=2, pattern=r"^[A-Z]+$")] = "ABCDEFGHIJ"
    """The letters of the options, in order."""
    options_field: Text | None = "options"
    """Field of the row with the options' texts, as a list or by letter; null compares letters alone."""
    first_index: Literal[0, 1] = 0
    """What number the first option has where the reference is a number."""


class TextSettings(AnswerSettings):
    """The same text as the reference, apart from case, spaces and punctuation at its ends."""

    name: Literal["text"]
    aliases_field: Text | None = None
    """Field of the row with more right answers, as a list."""
    keep_case: bool = False
    """Whether upper and lower case differ."""


class TokenF1Settings(AnswerSettings):
    """The share of words in common with the reference: F1 as in SQuAD."""

    name: Literal["token_f1"]
    aliases_field: Text | None = None
    """Field of the row with more right answers, as a list; the best one counts."""


class JsonSettings(VerifierSettings):
    """A JSON value of the right form, with the right fields."""

    name: Literal["json"]
    json_schema: dict[str, Any] | None = None
    """JSON Schema (draft 2020-12) that the value must meet."""
    schema_field: Text | None = None
    """Field of the row with a schema of its own."""
    fields: tuple[Text, ...] | dict[str, PositiveFloat] | None = None
    """Fields that must equal the reference's, as dotted names, or with their weights; null compares the whole
    value. Without a reference only the form counts."""
    form_reward: RewardShare = 0.0
    """Reward of the right form alone; the fields share the rest."""


class CodeSettings(VerifierSettings):
    """A Python program that passes the row's tests, in a process with limits."""

    name: Literal["code"]
    timeout_s: PositiveFloat | None = 60.0
    """Seconds for all tests of a program."""
    tests_field: Text | None = None
    """Field of the row with the tests; null takes the reference."""
    setup_field: Text | None = None
    """Field of the row with code that runs before the program, such as imports."""
    graded: bool = False
    """Whether the reward is the share of tests that pass; otherwise all must."""
    cpu_s: PositiveFloat = 5.0
    """CPU seconds of one test."""
    memory_mib: Annotated[PositiveInt, Field(ge=64)] = 512
    """Address space of a process, in MiB."""
    processes: PositiveInt = 16
    """Processes and threads that a program may have at a time."""
    file_mib: PositiveInt = 16
    """Size of all files that a program writes, in MiB."""
    output_kib: PositiveInt = 1024
    """Output that a program may write to stdout and stderr, in KiB."""


class JudgeSettings(VerifierSettings):
    """A language model that marks the response, behind an OpenAI-compatible endpoint."""

    name: Literal["judge"]
    timeout_s: PositiveFloat | None = 120.0
    """Seconds of one check, with all its tries."""
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
    """Address of the endpoint, such as http://judge:8000/v1."""
    model: Text
    """Name of the model there."""
    prompt: Text = (
        "Problem:\n{problem}\n\nReference answer:\n{reference}\n\nResponse to mark:\n{response}\n\n"
        "Does the response give the reference answer? Think briefly, then end with one line "
        "'Score: N', where N is a whole number from 0 (wrong) to 10 (right)."
    )
    """The request, with {problem}, {reference}, {response}, and {field.NAME} for the row's fields."""
    score_pattern: Text = r"(?im)^\W*score\W*(-?\d+(?:\.\d+)?)(?:\s*/\s*10)?\W*$"
    """Regular expression with one group, whose last match in the reply is the mark."""
    best_score: PositiveFloat = 10.0
    """The best mark; the worst is 0, and reward = mark / best_score."""
    key_variable: SecretVariable = "LASER_JUDGE_API_KEY"
    """Environment variable of the workers' nodes that holds the key; it may be unset."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature of the judge."""
    max_reply_tokens: PositiveInt = 512
    """Tokens of one reply."""
    tries: PositiveInt = 4
    """Requests for one check, the first included."""
    in_flight: PositiveInt = 32
    """Requests of one worker at a time."""
    max_requests: PositiveInt | None = None
    """Requests of a run, retries included, over all workers; null sets no limit."""
    max_tokens: PositiveInt | None = None
    """Tokens of a run, of requests and replies, over all workers; null sets no limit."""


class PatternSettings(VerifierSettings):
    """A regular expression that the response must match."""

    name: Literal["pattern"]
    pattern: Text
    """The expression, in the notation of Python's `re`."""
    whole: bool = False
    """Whether the whole response must match, rather than a part of it."""


class WeightedPart(Section):
    """One verifier of several."""

    verifier: "VerifierChoice"
    """A verifier as anywhere else."""
    weight: PositiveFloat = 1.0
    """Its share in `rule: sum`, relative to the other weights."""


class WeightedSettings(VerifierSettings):
    """Several verifiers in one."""

    name: Literal["weighted"]
    parts: Annotated[dict[str, WeightedPart], Field(min_length=1)]
    """The verifiers by the name that metrics show."""
    rule: Literal["sum", "all", "any"] = "sum"
    """sum: the weighted mean of the rewards; all: the smallest; any: the largest."""


class OwnSettings(VerifierSettings):
    """A verifier of the user's own, `package.module:name`."""

    settings: dict[str, Any] | None = None
    """Keyword arguments: with them the name is called, and what it returns is the verifier."""


BY_NAME: dict[str, type[VerifierSettings]] = {
    "math": MathSettings,
    "math_verify_plain": PlainMathSettings,
    "number": NumberSettings,
    "choice": ChoiceSettings,
    "text": TextSettings,
    "token_f1": TokenF1Settings,
    "json": JsonSettings,
    "code": CodeSettings,
    "judge": JudgeSettings,
    "pattern": PatternSettings,
    "weighted": WeightedSettings,
}
"""The verifiers that come with the project."""

FORMER_NAMES: dict[str, str] = {
    "actors.verification:verify_math": "math_verify_plain",
    "actors.answers.verdict:verify_answer": "math",
}
"""Import paths that saved configurations may hold, by the name of today."""
WITHOUT_REFERENCE = ("code", "judge", "pattern", "json")
"""Verifiers that can do without a reference answer."""
NOT_FROM_ROWS = ("judge",)
"""Verifiers that a row may not choose: the data would say where texts are sent."""


def read_verifier(choice: str | Mapping[str, Any], where: str) -> VerifierSettings:
    """The typed settings of a choice.

    Args:
        where: Names the setting in the error.

    Raises:
        ConfigError: The name is unknown, or a setting is refused.
    """
    tree = {"name": choice} if isinstance(choice, str) else dict(choice)
    name: Any = tree.get("name")
    tree["name"] = name = FORMER_NAMES.get(name, name) if isinstance(name, str) else name
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: has no name; write {{name: number, tolerance: 0.01}}, for example")
    if ":" not in name and name not in BY_NAME:
        near = nearest_keys(name, list(BY_NAME))[0]
        raise ConfigError(
            f"{where}: no verifier is named '{name}' (nearest: {near}); use {', '.join(BY_NAME)}, or "
            "package.module:function"
        )
    schema = OwnSettings if ":" in name else BY_NAME[name]
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "name"
        reason = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            near = nearest_keys(key, list(schema.model_fields))[0]
            reason = f"unknown setting; nearest: {near}"
            if schema is OwnSettings:
                reason = "unknown setting; what a verifier of your own takes goes under `settings`"
        raise ConfigError(f"{where}: verifier '{name}', {key}: {reason}") from error


def _readable(choice: Any, info: ValidationInfo) -> Any:
    if not isinstance(choice, str | dict):
        raise ValueError(
            f"{info.field_name}: must be a verifier's name, or a mapping with it, got {choice!r}"
        )
    try:
        read_verifier(choice, info.field_name or "verifier")
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return choice


VerifierChoice = Annotated[
    str | dict[str, Any], PlainValidator(_readable, json_schema_input_type=str | dict[str, Any])
]
"""A name, an import path, or a mapping of `name` and settings."""

WeightedPart.model_rebuild()
WeightedSettings.model_rebuild()


def verifier_text(choice: str | Mapping[str, Any], where: str = "verifier") -> str:
    """The canonical text of a choice: all its settings as JSON.

    Raises:
        ConfigError: As `read_verifier`.
    """
    return settings_text(read_verifier(choice, where))


def settings_text(settings: VerifierSettings) -> str:
    """The canonical text of typed settings."""
    return json.dumps(settings.model_dump(mode="json"), sort_keys=True)


@lru_cache(maxsize=1024)
def settings_of_text(text: str) -> VerifierSettings:
    """The settings that `verifier_text` wrote."""
    return read_verifier(json.loads(text), "verifier")


def row_verifier(value: Any, named: Mapping[str, str | Mapping[str, Any]], where: str) -> str:
    """The text of the verifier that a row chooses in its field `verifier`.

    A row chooses a verifier of the project, with settings, or one that the configuration names. An import
    path would let the data say what code runs.

    Args:
        value: The field: a name, or an object with `name`, which may also be JSON text.
        named: `verification.named`.
        where: File, line and field.

    Raises:
        DataError: There is no such verifier, its settings are refused, or a row may not choose it.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{where}: is not JSON ({error})") from error
    if isinstance(value, str) and value in named:
        return verifier_text(named[value], f"verification.named.{value}")
    if not isinstance(value, str | dict):
        raise DataError(f"{where}: is a {type(value).__name__}; write a verifier's name, or an object")
    try:
        settings = read_verifier(value, where)
    except ConfigError as error:
        raise DataError(str(error)) from error
    for part in parts_of(settings):
        if isinstance(part, OwnSettings) or part.name in NOT_FROM_ROWS:
            raise DataError(
                f"{where}: a row may not choose '{part.name}' itself; declare it under verification.named "
                "and write its name there"
            )
    return settings_text(settings)


def parts_of(settings: VerifierSettings) -> list[VerifierSettings]:
    """The verifiers that a choice runs: itself, or the parts of a weighted one."""
    if not isinstance(settings, WeightedSettings):
        return [settings]
    parts = [read_verifier(part.verifier, name) for name, part in settings.parts.items()]
    return [each for part in parts for each in parts_of(part)]


def needs_reference(text: str) -> bool:
    """Whether the verifier of this text has nothing to compare with in a row without a reference."""
    parts = parts_of(settings_of_text(text))
    return any(not isinstance(part, OwnSettings) and part.name not in WITHOUT_REFERENCE for part in parts)
