"""The reference of all settings, made from the schemas: for `laser explain` and docs/configuration.md."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config.cold_start import SFTConfig
from orchestrator.config.evaluation import EvalConfig
from orchestrator.config.schema import Mark, Section, has_mark, nearest_keys
from orchestrator.config.serving import ServeConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError

SCHEMAS: dict[str, type[Section]] = {
    "train": RunConfig,
    "sft": SFTConfig,
    "sweep": SweepConfig,
    "eval": EvalConfig,
    "serve": ServeConfig,
}
"""The settings of each command."""

ANY_KEY = "KEY"
"""Stands for the keys of a dictionary of sections, such as a sweep's `space`."""

ANY_NUMBER = "N"
"""Stands for the number of a section in a list, such as `data.train`."""

TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
}
"""Types of JSON Schema in words."""

RESUMING = ("train", "sft")
"""The commands whose settings tell which of them may change on a resume."""


@dataclass(frozen=True)
class Setting:
    """One key of a command."""

    key: str
    type: str
    """Its type and bounds in words."""
    default: str
    """As YAML; `required` where there is none."""
    meaning: str


def settings_of(command: str) -> list[Setting]:
    """All settings of a command, in the order of its schema."""
    schema = SCHEMAS[command]
    tree = schema.model_json_schema()
    marked = command in RESUMING
    return [
        _with_mark(setting, schema) if marked else setting for setting in _settings(tree, tree["$defs"], "")
    ]


def explanation(key: str | None = None, command: str | None = None) -> str:
    """What a key, or all keys of a section, mean; without a key the sections of the commands.

    Args:
        command: Explains the key of this command; all commands unless given.

    Raises:
        ConfigError: No command has the key.
    """
    commands = [command] if command else list(SCHEMAS)
    if key is None:
        return "\n".join(_overview(name) for name in commands)
    found: dict[tuple[Setting, ...], list[str]] = {}
    for name in commands:
        wanted = key.removeprefix("settings.") if name == "train" else key
        if settings := tuple(_matching(name, wanted)):
            found.setdefault(settings, []).append(name)
    if not found:
        raise ConfigError(_unknown(key, commands))
    return "\n\n".join(_described(settings, names) for settings, names in found.items())


def markdown() -> str:
    """The text of docs/configuration.md, without the newline at its end."""
    parts = [
        "# Configuration",
        "`make docs` writes this page from the declarations of the settings. `laser explain KEY` prints the "
        "same for one key or section.",
        "A configuration is a YAML file of sections; `key.path=value` on the command line replaces a value. "
        "A key without a default is required. The file is UTF-8, and no key may stand in it twice.",
        "A path that begins with `~` or `~user` is in that home folder, in every command and on its command "
        "line; with `laser submit` it is a path on the cluster. `$VAR` is not replaced in a file: the shell "
        "replaces it on a command line. Saved settings have the path that was meant.",
    ]
    for command, schema in SCHEMAS.items():
        parts.append(f"## laser {command}")
        if command == "sweep":
            parts.append("`settings` takes the sections of `laser train`; `space` takes their keys.")
        for section, settings in _by_section(settings_of(command)).items():
            if section:
                parts.append(f"### {section}\n\n{_section_meaning(schema, section)}".rstrip())
            head = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
            parts.append("\n".join([*head, *map(_row, settings)]))
    return "\n\n".join(parts)


def _settings(
    node: Mapping[str, Any], sections: Mapping[str, Any], prefix: str, listed: list[Any] | None = None
) -> Iterator[Setting]:
    """The settings of a section's JSON Schema.

    Args:
        listed: The sections that lists hold, described so far; each is described once.
    """
    listed = [] if listed is None else listed
    required = node.get("required", [])
    for name, field in node["properties"].items():
        key = f"{prefix}{name}"
        if (section := _section_in(field, sections)) is not None:
            yield from _settings(section, sections, f"{key}.", listed)
            continue
        default = "required" if name in required else json.dumps(field.get("default"), ensure_ascii=False)
        meaning = " ".join(field.get("description", "").split())
        yield Setting(key, _type(field), default, meaning)
        if (values := _section_in(field.get("additionalProperties"), sections)) is not None:
            yield from _settings(values, sections, f"{key}.{ANY_KEY}.", listed)
        item = _section_in(_list_in(field).get("items"), sections)
        if item is not None and item not in listed:
            listed.append(item)
            yield from _settings(item, sections, f"{key}.{ANY_NUMBER}.", listed)


def _list_in(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """The list that a field holds, which may be null; nothing for any other field."""
    return next((each for each in [field, *field.get("anyOf", [])] if each.get("type") == "array"), {})


def _section_in(field: Any, sections: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a field holds, which may be null."""
    if not isinstance(field, Mapping):
        return None
    for each in [field, *field.get("anyOf", [])]:
        if "$ref" in each:
            return sections[each["$ref"].rpartition("/")[2]]
    return None


def _type(field: Mapping[str, Any]) -> str:
    """A type of JSON Schema with its bounds, in words."""
    if "$ref" in field:
        return "mapping"
    if "anyOf" in field:
        kinds = [_type(each) for each in field["anyOf"] if each.get("type") != "null"]
        return "; or ".join(kinds) + (" (or null)" if len(kinds) < len(field["anyOf"]) else "")
    if "enum" in field:
        return ", ".join(field["enum"][:-1]) + f" or {field['enum'][-1]}"
    if field.get("format") == "path":
        return "path"
    if field.get("type") == "array":
        return _list_type(field)
    for values in (field.get("additionalProperties"), *field.get("patternProperties", {}).values()):
        if isinstance(values, Mapping) and "type" in values:
            return f"mapping to [{_type(values)}]"
    words = [TYPES.get(field.get("type", ""), "any value")]
    words += [text.format(field[key]) for key, text in BOUNDS.items() if key in field]
    return ", ".join(words)


BOUNDS = {
    "exclusiveMinimum": "above {:.10g}",
    "minimum": "at least {:.10g}",
    "exclusiveMaximum": "below {:.10g}",
    "maximum": "at most {:.10g}",
    "multipleOf": "a multiple of {:.10g}",
    "minLength": "not empty",
    "minProperties": "not empty",
    "pattern": "matches {}",
}
"""Bounds of JSON Schema in words."""


def _list_type(field: Mapping[str, Any]) -> str:
    if "prefixItems" in field:
        items = [_type(each) for each in field["prefixItems"]]
        return f"list of {len(items)} [{' and '.join(dict.fromkeys(items))}]"
    if "$ref" in field["items"]:
        return "text, mapping, or list of these"
    return f"list{', not empty,' if field.get('minItems') else ''} of [{_type(field['items'])}]"


def _with_mark(setting: Setting, schema: type[Section]) -> Setting:
    if not has_mark(schema, setting.key, Mark.MAY_CHANGE):
        return setting
    meaning = f"{setting.meaning.removesuffix('.')}. May change when a run resumes."
    return Setting(setting.key, setting.type, setting.default, meaning)


def _by_section(settings: list[Setting]) -> dict[str, list[Setting]]:
    """Settings by the section that they are in; those of no section under an empty name, first."""
    sections: dict[str, list[Setting]] = {"": []}
    for setting in settings:
        sections.setdefault(setting.key.rpartition(".")[0], []).append(setting)
    return {section: members for section, members in sections.items() if members}


def _section_meaning(schema: type[Section], section: str) -> str:
    tree = schema.model_json_schema()
    node: Any = tree
    for name in section.split("."):
        if name in (ANY_KEY, ANY_NUMBER):
            field = node["additionalProperties"] if name == ANY_KEY else _list_in(node)["items"]
        else:
            field = node["properties"][name]
        node = _section_in(field, tree["$defs"]) or field
    return " ".join(node.get("description", "").split())


def _row(setting: Setting) -> str:
    cells = (f"`{setting.key}`", setting.type, f"`{setting.default}`", setting.meaning)
    if setting.default == "required":
        cells = (cells[0], cells[1], "required", cells[3])
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _overview(command: str) -> str:
    keys = dict.fromkeys(setting.key.partition(".")[0] for setting in settings_of(command))
    return textwrap.fill(f"laser {command}: {', '.join(keys)}", 100, subsequent_indent="    ")


def _matching(command: str, key: str) -> Iterator[Setting]:
    """The setting of that key, or those of that section; for a key within a dictionary, the dictionary."""
    settings = settings_of(command)
    matching = [each for each in settings if each.key == key or each.key.startswith(f"{key}.")]
    yield from matching or [
        each for each in settings if each.type.startswith("mapping") and key.startswith(f"{each.key}.")
    ]


def _described(settings: tuple[Setting, ...], commands: list[str]) -> str:
    lines = [", ".join(f"laser {command}" for command in commands)]
    for setting in settings:
        default = "required" if setting.default == "required" else f"default {setting.default}"
        lines.append(f"  {setting.key}: {setting.type}; {default}")
        lines.append(textwrap.fill(setting.meaning, 100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


def _unknown(key: str, commands: list[str]) -> str:
    keys = [setting.key for command in commands for setting in settings_of(command)]
    sections = [key.rpartition(".")[0] for key in keys if "." in key]
    near = nearest_keys(key, list(dict.fromkeys([*keys, *sections])), count=3)
    return f"{key}: no such key or section. Nearest known: {', '.join(near)}"
