"""Reading settings: YAML and `key.path=value` overrides in, typed sections out, or an error that names each wrong key."""

import difflib
import math
import re
import types
import typing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from orchestrator.errors import ConfigError

Text = Annotated[str, Field(min_length=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
StepCount = Annotated[int, Field(ge=0)]
QUANTUM = 1e-4
"""The finest part of a resource that Ray counts."""
Share = Annotated[float, Field(gt=0, multiple_of=QUANTUM)]
Gpus = Annotated[float, Field(ge=0, multiple_of=QUANTUM)]
CustomResources = dict[str, Share]


class Section(BaseModel):
    """A group of settings: unknown keys are refused, the values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


C = TypeVar("C", bound=Section)


class Mark(Enum):
    """A property of a setting that several parts of the program ask for; a mark on a section is one on all its keys.

    A field carries it as `Annotated[int, Mark.MAY_CHANGE]`.
    """

    MAY_CHANGE = (
        "may change when a run resumes: it decides where and how fast the run works, not what it learns"
    )
    AFTER_WARM_UP = "has no effect before the self-reward joins, after step loss.reasoning_warmup_steps"
    PLACE = "says where a run is kept, not what it does"
    POOL_SIZE = "sizes a pool; the cost of a step on one device does not depend on it"
    SET_BY_SWEEP = "a sweep sets it for its trials"


@dataclass(frozen=True)
class SettingsOf:
    """Marks a dictionary whose keys are those of another schema: `Annotated[dict[str, Any], SettingsOf(RunConfig)]`."""

    schema: type[Section]


def refuse_parts_of_gpus(key: str, gpus: float, tensor_parallel: int = 1) -> None:
    """Raises ValueError for a number of GPUs that an actor cannot be given; `tensor_parallel` ranks of it share them.

    Ray gives an actor a part of one GPU, or whole ones. Ranks that share an engine's weights need a GPU each.
    """
    if gpus != int(gpus) and (gpus > 1 or tensor_parallel > 1):
        ranks = f" for each of {tensor_parallel} tensor-parallel ranks" if tensor_parallel > 1 else ""
        raise ValueError(
            f"{key}: is {gpus:g}{ranks}, but only a single GPU can be shared: use {math.ceil(gpus)}"
        )


def read_config(path: str | Path, overrides: typing.Sequence[str], schema: type[C]) -> C:
    """Read `path`, apply `overrides` as `apply_overrides` does, and validate.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override is malformed, or a key or value is refused.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Give the path of a YAML configuration."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: must hold sections such as `run:` and `model:`, but is {type(tree).__name__}."
        )
    apply_overrides(tree, overrides, schema)
    return validate(tree, schema, str(path))


def validate(tree: dict[str, Any], schema: type[C], source: str) -> C:
    """Check a tree of settings; `source` names it in the error."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems: dict[str, list[dict[str, Any]]] = {}
        for number, problem in enumerate(error.errors()):
            # Each member of a union complains on its own of the one wrong value.
            problems.setdefault(_key(problem["loc"]) or str(number), []).append(dict(problem))
        lines = [_explain(schema, alternatives) for alternatives in problems.values()]
        count = "1 setting" if len(lines) == 1 else f"{len(lines)} settings"
        raise ConfigError(f"{source}: " + "\n  ".join([f"{count} refused", *lines])) from error


def apply_overrides(tree: dict[str, Any], overrides: typing.Sequence[str], schema: type[Section]) -> None:
    """Set `key.path=value` texts in a tree of the settings of `schema`, in order; all commands read theirs here.

    A value is YAML. Without one, `key=` is the empty text where the setting may be empty, such as `data.instruction`,
    and null everywhere else; `key=null` is null everywhere.

    Raises:
        ConfigError: An override has no key or no `=`, its value is no YAML, or its key goes through a value.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"override {override!r}: write key.path=value, with a key such as {known_keys(schema)[0]}"
            )
        try:
            value = yaml.safe_load(text) if text.strip() else "" if _may_be_empty(schema, key) else None
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
        _assign(tree, key, value, f"override {override!r}")


def with_overrides(config: C, overrides: typing.Sequence[str], source: str) -> C:
    """A copy with `overrides` applied as by `apply_overrides`, validated again; `source` names them in the error.

    Raises:
        ConfigError: An override is malformed, or a key or value is refused.
    """
    tree = config.model_dump(mode="json")
    apply_overrides(tree, overrides, type(config))
    return validate(tree, type(config), source)


def with_settings(config: C, settings: typing.Mapping[str, Any], source: str = "settings") -> C:
    """A copy with other values, `{"loss.alpha": 0.5}`, validated again; `source` names them in the error.

    Raises:
        ConfigError: A key is unknown or a value refused.
    """
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        _assign(tree, key, value, source)
    return validate(tree, type(config), source)


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat_settings(config: Section) -> dict[str, Any]:
    """`{"loss.alpha": 0.1, ...}`: every setting under its dotted key."""
    return flat_tree(config.model_dump(mode="json"))


def flat_tree(tree: typing.Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
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
        ConfigError: The saved settings are of another command or version.
    """
    before, now = (
        flat_settings(validate(yaml.safe_load(saved.read_text()), type(config), source or str(saved))),
        flat_settings(config),
    )
    # Pass-through settings come and go: a key may be in either.
    changed = [key for key in now | before if before.get(key) != now.get(key)]
    return {key: f"{before.get(key)!r} before, {now.get(key)!r} now" for key in changed}


def _may_be_empty(schema: type[Section], key: str) -> bool:
    """Whether the setting at a dotted key takes the empty text."""
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return False
    if rest:
        marks = (mark.schema for mark in field.metadata if isinstance(mark, SettingsOf))
        section = _section_of(field.annotation) or next(marks, None)
        return section is not None and _may_be_empty(section, rest)
    # Strict, because a path, which is no text, would take it for the current directory.
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


def _key(location: typing.Sequence[int | str]) -> str:
    """The dotted key of an error's location, without pydantic's names of union members."""
    return ".".join(part for part in map(str, location) if not part.startswith(("literal[", "constrained-")))


def _explain(schema: type[Section], alternatives: list[dict[str, Any]]) -> str:
    """One line on one wrong key: `alternatives` are the complaints of each type that it could have had."""
    problem = alternatives[0]
    key = _key(problem["loc"])
    if problem["type"] == "value_error":  # our own, which names its keys
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key. Nearest known key: {_nearest(key, schema)}"
    if problem["type"] == "missing":
        return f"{key}: missing. {_described(schema, key)}".rstrip()
    if problem["type"] == "model_type":
        example = next(known for known in known_keys(schema) if known.startswith(f"{key}."))
        return f"{key}: must be a section of keys such as {example}, got {problem['input']!r}. Leave it out for the defaults."
    # "Input should be a valid number, unable to parse string as a number": what follows the comma repeats what stands before it.
    messages = (alternative["msg"].replace(" is not ", " should be ") for alternative in alternatives)
    rules = dict.fromkeys(
        re.sub(r"^.* should |, (unable|got) .*$| for <class .*$", "", message) for message in messages
    )
    return f"{key}: must {', or '.join(rules)}, got {problem['input']!r}. {_described(schema, key)}".rstrip()


def _nearest(key: str, schema: type[Section]) -> str:
    """A key of the same name in another section, else the most similar one."""
    known = known_keys(schema)
    namesakes = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    candidates = namesakes or (known if "." in key else [*schema.model_fields, *known])
    return difflib.get_close_matches(key, candidates, n=1, cutoff=0.0)[0]


def known_keys(schema: type[Section], prefix: str = "") -> list[str]:
    """All dotted keys of a schema."""
    keys = []
    for name, field in schema.model_fields.items():
        section = _section_of(field.annotation)
        keys += known_keys(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return keys


def has_mark(schema: type[Section], key: str, *marks: Mark) -> bool:
    """Whether the setting at a dotted key, or a section or dictionary that it belongs to, has one of the marks."""
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return False
    section = _section_of(field.annotation)
    return any(mark in field.metadata for mark in marks) or (
        section is not None and bool(rest) and has_mark(section, rest, *marks)
    )


def keys_marked(schema: type[Section], mark: Mark) -> tuple[str, ...]:
    """All dotted keys of a schema that carry the mark, in the schema's order."""
    return tuple(key for key in known_keys(schema) if has_mark(schema, key, mark))


def _section_of(annotation: Any) -> type[Section] | None:
    members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next(
        (member for member in members if isinstance(member, type) and issubclass(member, Section)), None
    )


def _described(schema: type[Section], key: str) -> str:
    node: type[Section] | None = schema
    text = ""
    for part in key.split("."):
        field = node.model_fields.get(part) if node else None
        if field is None:
            return text
        text, node = field.description or "", _section_of(field.annotation)
    return text
