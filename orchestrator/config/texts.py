"""Files that a user writes: their text, and what a YAML file holds.

In: a path. Out: text, or a mapping of plain values, or a `ConfigError` that names the file and the place in
it. A wrong encoding, a key that is written twice and aliases that multiply are refused.
"""

import codecs
import os
import select
import stat
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from orchestrator.errors import ConfigError

MOST_BYTES = 16 * 2**20
"""The largest text file that is read. No file that a user writes is as large; model files are."""
PIPE_WAIT_S = 10.0
"""Seconds that a named pipe may wait for its writer."""
MOST_VALUES = 100_000
"""Values in a tree, after its aliases are replaced by what they stand for."""
DEEPEST = 64
"""The deepest nesting of a tree."""

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_PLAIN_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


def read_text(path: Path, advice: str) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
        advice: A sentence on what to give instead, for the error.

    Raises:
        ConfigError: There is no such file, it cannot be read, or it is not UTF-8 text.
    """
    try:
        data = _bytes(path, advice)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: cannot be read ({reason}). {advice}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(_wrong_encoding(path, data, error.start, advice)) from error
    if "\0" in text:
        raise ConfigError(_wrong_encoding(path, data, data.index(0), advice))
    return text


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text: null, true, false, numbers, texts, lists and mappings. A date is a text.

    Args:
        source: Begins the error's sentence, such as `config.yaml:`.

    Raises:
        ConfigError: It is not YAML, has a key twice, or has more or deeper values than any configuration.
    """
    loader = None
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measured(node, source, {}, 0)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(_too_deep(source)) from None
    except (ValueError, OverflowError) as error:  # the scanner's own, of an escape that is no character
        line = "" if loader is None else f" in line {loader.line + 1}"
        raise ConfigError(f"{source} is not valid YAML: {error}{line}") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path, advice: str) -> dict[str, Any]:
    """The sections of a YAML configuration.

    Raises:
        ConfigError: As `read_text` and `parse_yaml`; or it holds no mapping.
    """
    tree = parse_yaml(read_text(path, advice), f"{path}:")
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: must hold sections such as `run:` and `model:`, but is {type(tree).__name__}. {advice}"
        )
    return tree


def refuse_unusable_texts(value: Any, source: str, key: str = "", depth: int = 0) -> None:
    """Refuse a tree with a text that no file and no path can hold, or that is nested too deeply.

    Raises:
        ConfigError: The message names the key.
    """
    if depth > DEEPEST:
        raise ConfigError(_too_deep(f"{source}: {key[:80]}"))
    if isinstance(value, dict):
        for name, below in value.items():
            path = f"{key}.{name}" if key else str(name)
            refuse_unusable_texts(name, source, path, depth + 1)
            refuse_unusable_texts(below, source, path, depth + 1)
    elif isinstance(value, list | tuple):
        for number, below in enumerate(value):
            refuse_unusable_texts(below, source, f"{key}.{number}", depth + 1)
    elif isinstance(value, str | Path):
        text = str(value)
        broken = next((letter for letter in text if letter == "\0" or "\ud800" <= letter <= "\udfff"), None)
        if broken is not None:
            kind = "the character NUL" if broken == "\0" else "bytes or half characters that are no UTF-8"
            raise ConfigError(f"{source}: {ascii(key)[1:-1]}: {text!a} holds {kind}; write other text")


class _PlainLoader(yaml.SafeLoader):
    """Constructs the values that JSON has too, and reports each value that it refuses with its line."""

    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _PLAIN_TAGS
    }
    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise ConstructorError(
                None, None, f"{node.tag.rpartition(':')[2]} cannot have this value ({error})", node.start_mark
            ) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ConstructorError(
                        None, None, f"the key {key.value!r} stands there twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _bytes(path: Path, advice: str) -> bytes:
    try:
        path = path.expanduser()
    except RuntimeError as error:  # no such user
        raise ConfigError(f"{path}: {error} {advice}") from error
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a socket"
        raise ConfigError(f"{path}: is {kind}, not a file. {advice}")
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if stat.S_ISFIFO(mode):  # also what a shell makes of `<(...)`
            if not select.select([file], [], [], PIPE_WAIT_S)[0]:
                raise ConfigError(f"{path}: is a pipe, and nobody writes into it. {advice}")
            os.set_blocking(file.fileno(), True)
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: is larger than {MOST_BYTES // 2**20} MiB, so it is no text. {advice}")
    return data


def _wrong_encoding(path: Path, data: bytes, position: int, advice: str) -> str:
    """What is said of a file that is not UTF-8, with the encoding that it seems to have."""
    start = data[:1024]
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in start:
        zeros = [start[first::2].count(0) / max(1, len(start) // 2) for first in (0, 1)]
        encoding = "UTF-16 without a byte order mark" if max(zeros) > 0.4 and min(zeros) < 0.1 else None
    elif encoding is None and not any(byte < 9 or 13 < byte < 27 for byte in start):
        encoding = "Latin-1 or Windows-1252"
    what = f"seems to be {encoding}: save it as UTF-8" if encoding else "seems to be a binary file"
    found = f"the byte at position {position} is 0x{data[position]:02x}"
    return f"{path}: is not UTF-8 text ({found}), and {what}. {advice}"


def _measured(node: Any, source: str, sizes: dict[int, int], depth: int) -> int:
    """The values below a node, aliases replaced; refuses more than `MOST_VALUES`."""
    if depth > DEEPEST:
        raise ConfigError(_too_deep(source))
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise ConfigError(
                f"{source} is not valid YAML: line {node.start_mark.line + 1} is an alias of itself"
            )
        return sizes[id(node)]
    sizes[id(node)] = 0  # being measured
    below = [] if isinstance(node, yaml.ScalarNode) else node.value
    nodes = [each for pair in below for each in (pair if isinstance(pair, tuple) else (pair,))]
    size = 1 + sum(_measured(each, source, sizes, depth + 1) for each in nodes)
    if size > MOST_VALUES:
        raise ConfigError(
            f"{source} cannot be used: line {node.start_mark.line + 1} holds more than {MOST_VALUES} values, "
            "too many for a configuration. Are there aliases (*name) of aliases?"
        )
    sizes[id(node)] = size
    return size


def _too_deep(source: str) -> str:
    return f"{source} is nested more than {DEEPEST} levels deep"
