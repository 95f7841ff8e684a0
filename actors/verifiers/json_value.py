"""The verifier `json`: a JSON value of the right form, with the right fields.

In: a response, a problem whose reference is JSON, a schema. Out: a `Verdict`, graded by form and fields.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from actors.answers.tokens import MOST_DIGITS
from actors.boxes import find_boxes
from actors.verifiers.stated import faulty_data, row_field
from orchestrator.config.verifiers import JsonSettings
from orchestrator.errors import ConfigError
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)
_MISSING = object()
_MOST_STARTS = 200
"""Places in a response where a value may start; a response of brackets alone has more."""


def json_of(response: str) -> Any:
    """The last JSON object or array of a response: the whole, a box, a fenced block, or within its text.

    Raises:
        ValueError: It holds none.
    """
    boxed = find_boxes(response).last
    for text in (response, *([boxed] if boxed else []), *reversed(_FENCE.findall(response))):
        try:
            return _decoded(text)
        except ValueError:
            continue
    found = list(_values_within(response))
    if not found:
        raise ValueError("the response holds no JSON object or array")
    return found[-1]


def _decoded(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refused, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:  # the time to read one grows with the square of its length
        raise ValueError(f"a number of more than {MOST_DIGITS} digits")
    return int(digits)


def _values_within(text: str) -> Iterator[Any]:
    decoder, position = json.JSONDecoder(parse_constant=_refused, parse_int=_integer), 0
    for _ in range(_MOST_STARTS):
        start = re.compile(r"[{\[]").search(text, position)
        if start is None:
            return
        try:
            value, position = decoder.raw_decode(text, start.start())
            yield value
        except (ValueError, RecursionError):
            position = start.end()


class JsonVerifier:
    """The verifier `json`."""

    def __init__(self, settings: JsonSettings) -> None:
        self.settings = settings
        fields = settings.fields
        self._weights = dict.fromkeys(fields, 1.0) if isinstance(fields, tuple) else fields
        if settings.json_schema is not None:
            try:
                Draft202012Validator.check_schema(settings.json_schema)
            except SchemaError as error:
                raise ConfigError(f"verifier 'json', json_schema: {error.message}") from error

    def __call__(self, response: str, problem: Problem) -> Verdict:
        try:
            gold = _MISSING if problem.reference is None else _decoded(problem.reference)
        except ValueError as error:
            return faulty_data(problem, f"the reference is not JSON ({error})")
        schema = self._schema(problem)
        if isinstance(schema, Verdict):
            return schema
        try:
            value = json_of(response)
        except ValueError as error:
            return Verdict(Status.FORMAT, None, str(error), parts={"form": 0.0})
        answer = _canonical(value)
        if schema is not None and (fault := best_match(Draft202012Validator(schema).iter_errors(value))):
            return Verdict(
                Status.FORMAT, answer, f"{fault.json_path}: {fault.message}"[:300], parts={"form": 0.0}
            )
        if gold is _MISSING:
            return Verdict(Status.CORRECT, answer, "of the right form", parts={"form": 1.0})
        right = self._right(value, gold)
        share = sum(self._weight(name) * ok for name, ok in right.items()) / sum(map(self._weight, right))
        reward = self.settings.form_reward + (1 - self.settings.form_reward) * share
        wrong = [name for name, ok in right.items() if not ok]
        detail = f"not as the reference: {', '.join(wrong[:10])}" if wrong else "all fields are right"
        parts = {"form": 1.0, "fields": share}
        return Verdict(Status.WRONG, answer, detail, reward=min(1.0, reward), parts=parts)

    def answer(self, response: str) -> str | None:
        """The value in a canonical form."""
        try:
            return _canonical(json_of(response))
        except ValueError:
            return None

    def same(self, first: str, second: str) -> bool:
        """Whether two values are equal in the fields that count."""
        one, other = json.loads(first), json.loads(second)
        return all(self._right(one, other).values())

    def _weight(self, name: str) -> float:
        return 1.0 if self._weights is None else self._weights[name]

    def _schema(self, problem: Problem) -> Any:
        name = self.settings.schema_field
        if name is None:
            return self.settings.json_schema
        schema = row_field(problem, name)
        try:
            schema = _decoded(schema) if isinstance(schema, str) else schema
            Draft202012Validator.check_schema(schema)
        except (ValueError, SchemaError) as error:
            return faulty_data(problem, f"'{name}' is no JSON Schema ({str(error)[:200]})")
        return schema

    def _right(self, value: Any, gold: Any) -> dict[str, bool]:
        """Whether each field is as the reference has it; without fields, the whole value."""
        if not self._weights:
            return {"the value": _equal(value, gold)}
        return {name: _equal(_within(value, name), _within(gold, name)) for name in self._weights}


def _within(value: Any, name: str) -> Any:
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def _equal(one: Any, other: Any) -> bool:
    """As JSON: 1 and 1.0 are one number, but 1 and true differ."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
