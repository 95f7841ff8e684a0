"""Reading settings: YAML and `key.path=value` overrides in, typed sections out.

Settings that are refused raise one error, which names each wrong key, what is allowed there, and the nearest
key that exists.
"""

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from orchestrator.config.limits import MOST, MOST_ACTORS, at_most
from orchestrator.config.texts import parse_yaml, read_yaml, refuse_unusable_texts
from orchestrator.errors import ConfigError
from orchestrator.shown_text import without_passwords

Text = Annotated[str, Field(min_length=1)]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)]
"""A name that is fit for a folder and for a part of a URL."""
PositiveInt = Annotated[int, Field(ge=1), at_most(MOST)]
ActorCount = Annotated[int, Field(ge=1), at_most(MOST_ACTORS)]
"""How many actors a pool has."""
PositiveFloat = Annotated[float, Field(gt=0)]
Gib = Annotated[float, Field(gt=0), at_most(MOST)]
"""An amount of memory."""
StepCount = Annotated[int, Field(ge=0), at_most(MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
QUANTUM = 1e-4
"""The finest part of a resource that Ray counts."""
Share = Annotated[float, Field(gt=0, multiple_of=QUANTUM)]
"""An amount of a resource; several actors may share one CPU."""
Gpus = Annotated[float, Field(ge=0, multiple_of=QUANTUM)]
CustomResources = dict[str, Share]


class Section(BaseModel):
    """A group of settings. Unknown keys are refused, and validated values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


C = TypeVar("C", bound=Section)


class Mark(Enum):
    """A property of a setting that several modules ask for. A mark on a section holds for all its keys.

    A field carries it as `Annotated[int, Mark.MAY_CHANGE]`.
    """

    MAY_CHANGE = "may change when a run resumes"
    """It decides where and how fast a run works and what it keeps, but not what it learns."""
    AFTER_WARM_UP = "has no effect up to step loss.reasoning_warmup_steps"
    """The self-reward joins after that step."""
    PLACE = "says where a run is kept, not what it does"
    POOL_SIZE = "sizes a pool"
    """The cost of a step on one device does not depend on it."""
    SET_BY_SWEEP = "is set by a sweep for its trials"


@dataclass(frozen=True)
class SettingsOf:
    """Marks a dictionary that has the keys of another schema.

    A field carries it as `Annotated[dict[str, Any], SettingsOf(RunConfig)]`.
    """

    schema: type[Section]


def read_config(path: str | Path, overrides: Sequence[str], schema: type[C]) -> C:
    """Read `path`, apply `overrides` as `apply_overrides` does, and validate.

    Raises:
        ConfigError: The file is missing, is not UTF-8 or is not a YAML mapping; an override is malformed; or
            a key or value is refused.
    """
    tree = read_yaml(Path(path), "Give the path of a YAML configuration.")
    apply_overrides(tree, overrides, schema)
    return validate(tree, schema, str(path))


def validate(tree: Mapping[str, Any], schema: type[C], source: str) -> C:
    """The settings of a tree.

    Args:
        source: Names the tree in the error.

    Raises:
        ConfigError: A key or a value is refused.
    """
    refuse_unusable_texts(tree, source)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems: dict[str, list[dict[str, Any]]] = {}
        for number, problem in enumerate(error.errors()):
            # Each member of a union reports the same wrong value.
            key = ".".join(_key_parts(schema, problem["loc"]))
            problems.setdefault(key or str(number), []).append(dict(problem))
        lines = [_explanation(schema, alternatives) for alternatives in problems.values()]
        count = "1 setting" if len(lines) == 1 else f"{len(lines)} settings"
        raise ConfigError(f"{source}: " + "\n  ".join([f"{count} refused", *lines])) from error


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str], schema: type[Section]) -> None:
    """Set `key.path=value` texts in a tree of the settings of `schema`, in order; every command uses this.

    A value is YAML. Without a value, `key=` is the empty text where the setting may be empty, such as
    `data.instruction`, and null everywhere else; `key=null` is null everywhere.

    Raises:
        ConfigError: An override has no key or no `=`, its value is not YAML, or its key goes through a value.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"override {override!r}: write key.path=value, with a key such as {known_keys(schema)[0]}"
            )
        source = f"override {override!r}"
        empty = "" if _may_be_empty(schema, key) else None
        _assign(tree, key, parse_yaml(text, f"{source}: the value") if text.strip() else empty, source)


def with_overrides(config: C, overrides: Sequence[str], source: str) -> C:
    """A copy with `overrides` applied as by `apply_overrides`, and validated again.

    Args:
        source: Names the overrides in the error.

    Raises:
        ConfigError: An override is malformed, or a key or a value is refused.
    """
    tree = config.model_dump(mode="json")
    apply_overrides(tree, overrides, type(config))
    return validate(tree, type(config), source)


def with_settings(config: C, settings: Mapping[str, Any], source: str = "settings") -> C:
    """A copy with other values, such as `{"loss.alpha": 0.5}`, and validated again.

    Args:
        source: Names the values in the error.

    Raises:
        ConfigError: A key is unknown or a value is refused.
    """
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        _assign(tree, key, value, source)
    return validate(tree, type(config), source)


def dump_config(config: Section) -> str:
    """All settings, defaults included, as YAML for others to read: without passwords."""
    return yaml.safe_dump(without_passwords(config.model_dump(mode="json")), sort_keys=False)


def flat_settings(config: Section) -> dict[str, Any]:
    """Every setting under its dotted key: `{"loss.alpha": 0.1, ...}`."""
    return flat_tree(config.model_dump(mode="json"))


def public_settings(config: Section) -> dict[str, Any]:
    """The flat settings as others may see them: addresses are without passwords."""
    return flat_tree(without_passwords(config.model_dump(mode="json")))


def flat_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"loss": {"alpha": 0.1}}` as `{"loss.alpha": 0.1}`; an empty section keeps its key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flat_tree(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed_settings(saved: Path, config: Section, source: str | None = None) -> dict[str, str]:
    """How the settings saved with a run differ from `config`: `{"loss.alpha": "0.1 before, 0.5 now"}`.

    Args:
        source: Names the saved settings in the error, where `saved` is a copy.

    Raises:
        ConfigError: The saved settings are damaged, or those of another command or version.
    """
    tree = read_yaml(saved, "Restore the file, or choose another folder.")
    before = public_settings(validate(tree, type(config), source or str(saved)))
    now = public_settings(config)  # the saved ones have no passwords
    # A dictionary such as rollout.engine_args may gain and lose keys.
    changed = [key for key in now | before if before.get(key) != now.get(key)]
    return {key: f"{before.get(key)!r} before, {now.get(key)!r} now" for key in changed}


def known_keys(schema: type[Section], prefix: str = "") -> list[str]:
    """All dotted keys of a schema, in its order."""
    keys = []
    for name, field in schema.model_fields.items():
        section = section_of(field.annotation)
        keys += known_keys(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return keys


def has_mark(schema: type[Section], key: str, *marks: Mark) -> bool:
    """Whether the setting at a dotted key, or a section or dictionary that holds it, has one of the marks."""
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return False
    section = section_of(field.annotation)
    return any(mark in field.metadata for mark in marks) or (
        section is not None and bool(rest) and has_mark(section, rest, *marks)
    )


def keys_marked(schema: type[Section], mark: Mark) -> tuple[str, ...]:
    """All dotted keys of a schema that have the mark, in its order."""
    return tuple(key for key in known_keys(schema) if has_mark(schema, key, mark))


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field of this type holds; None where it holds a value."""
    return next((each for each in _members(annotation) if _is_section(each)), None)


def nearest_keys(key: str, known: Sequence[str], count: int = 1) -> list[str]:
    """The keys that a user may have meant: the same name in another section, else the most similar ones."""
    namesakes = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    return difflib.get_close_matches(key, namesakes or known, n=count, cutoff=0.0)


def _may_be_empty(schema: type[Section], key: str) -> bool:
    """Whether the setting at a dotted key takes the empty text."""
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return False
    if rest:
        marks = (mark.schema for mark in field.metadata if isinstance(mark, SettingsOf))
        section = section_of(field.annotation) or next(marks, None)
        return section is not None and _may_be_empty(section, rest)
    # Strict, because a path would take the empty text for the current directory.
    allowed: Any = Annotated[field.annotation, field]
    try:
        TypeAdapter(allowed).validate_python("", strict=True)
    except ValidationError:
        return False
    return True


def _assign(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set the value at a dotted key."""
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"{source}: {parent} is a value, not a section")
    node[leaf] = value


def _members(annotation: Any) -> list[Any]:
    """The types of a union; of any other type, itself."""
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [each for member in typing.get_args(annotation) for each in _members(member)]
    return [annotation]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _below(annotation: Any, part: int | str) -> Any:
    """The type of the value that a part of an error's location names within a value of the type `annotation`.

    None where the part names no value, but a member of a union.
    """
    for member in _members(annotation):
        if _is_section(member):
            field = member.model_fields.get(part)
            return Any if field is None else field.annotation
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin is dict:
            return arguments[1]
        if origin in (list, tuple) and (isinstance(part, int) or part.isdecimal()):
            items = [each for each in arguments if each is not ...]
            return items[min(int(part), len(items) - 1)]
    return None


def _key_parts(schema: type[Section], location: Sequence[int | str]) -> list[str]:
    """The parts of the key of an error's location; pydantic also names the members of a union there."""
    parts: list[str] = []
    node: Any = schema
    for part in location:
        node = _below(node, part)
        if node is None:
            break
        parts.append(str(part))
    return parts


ALLOWED = {
    "bool": "true or false",
    "dict": "a mapping of keys to values",
    "finite_number": "a finite number",
    "float": "a number",
    "home": "a path ({reason})",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int": "a whole number",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list": "a list",
    "literal_error": "{expected}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "path": "a path",
    "string": "text",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "text of at most {max_length} character(s)",
    "string_too_short": "text of at least {min_length} character(s)",
    "too_long": "a list of at most {max_length} value(s)",
    "too_short": "at least {min_length} value(s) long",
    "tuple": "a list",
}
"""What a value must be, by the type of pydantic's error, or by its first word: `int` of `int_parsing`.

The error's context has the values in braces.
"""


def _explanation(schema: type[Section], alternatives: list[dict[str, Any]]) -> str:
    """One line on one wrong key: `alternatives` are the errors of each type that its value could have had."""
    problem = alternatives[0]
    parts = _key_parts(schema, problem["loc"])
    key = ".".join(parts)
    if problem["type"] == "value_error":  # our own error, which names its keys
        return str(problem["ctx"]["error"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key. Nearest known key: {_nearest(schema, parts)}"
    if problem["type"] == "missing":
        return f"{key}: missing. {_described(schema, parts)}".rstrip()
    got = "null" if problem["input"] is None else repr(problem["input"])
    if problem["type"] == "model_type":
        example = next((known for known in known_keys(schema) if known.startswith(f"{key}.")), None)
        such_as = f" such as {example}" if example else ""
        return f"{key}: must be a section of keys{such_as}, got {got}. Leave it out for the defaults."
    rules = dict.fromkeys(_allowed(alternative) for alternative in alternatives)
    return f"{key}: must be {', or '.join(rules)}, got {got}. {_described(schema, parts)}".rstrip()


def _allowed(problem: dict[str, Any]) -> str:
    kind = problem["type"]
    template = ALLOWED.get(kind) or ALLOWED.get(kind.partition("_")[0])
    # None of our settings has other types of errors today; pydantic's words are better than none.
    return template.format(**problem.get("ctx", {})) if template else f"valid ({problem['msg']})"


def _nearest(schema: type[Section], parts: Sequence[str]) -> str:
    """The known key that is nearest to an unknown one, whose section is known."""
    node: Any = schema
    for part in parts[:-1]:
        node = _below(node, part)
    key, section = ".".join(parts), section_of(node) or schema
    siblings = [".".join([*parts[:-1], name]) for name in section.model_fields]
    known = known_keys(schema)
    if not set(siblings) & {*known, *schema.model_fields}:
        # The section is a value of a dictionary, such as a sweep's `space`.
        return nearest_keys(key, siblings)[0]
    return nearest_keys(key, known if len(parts) > 1 else [*schema.model_fields, *known])[0]


def _described(schema: type[Section], parts: Sequence[str]) -> str:
    """What the setting means; empty for a section."""
    node: Any = schema
    text = ""
    for part in parts:
        section = section_of(node)
        if section is not None and part in section.model_fields:
            text = section.model_fields[part].description or ""
        node = _below(node, part)
    return text
