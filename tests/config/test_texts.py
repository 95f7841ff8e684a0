"""Files that a user writes: wrong encodings, other kinds of files, and YAML that is no configuration."""

import os
import re
import socket
import struct
import threading

import pytest

from orchestrator.config import texts
from orchestrator.config.texts import parse_yaml, read_text, read_yaml
from orchestrator.config.training import load_config
from orchestrator.errors import ConfigError
from orchestrator.serving.keys import Keys

TEXT = "run: {name: t, steps: 1}\ndata: {train: größe.jsonl}\nmodel: {path: m}\nself_reward: {token: z}\n"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_is_read_with_and_without_a_byte_order_mark(file, encoding):
    file.write_bytes(TEXT.encode(encoding))
    assert load_config(file).data.train[0].path == "größe.jsonl"
    file.write_bytes("a secret key ü\n".encode(encoding))
    assert Keys.load(file).admit("Bearer a secret key ü")


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TEXT.encode("latin-1"), "Latin-1 or Windows-1252"),
        (TEXT.encode("utf-16"), "UTF-16:"),
        (TEXT.encode("utf-16-be"), "UTF-16 without a byte order mark"),
        ("run: 1\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (struct.pack("<Q", 200) + b'{"a": 1}' + bytes(range(256)) * 8, "a binary file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "a binary file"),
        (b"PK\x03\x04\x14\xff\xff" + bytes(range(1, 255)), "a binary file"),
        ("run: überlang\n".encode()[:6], "Latin-1 or Windows-1252"),
    ],
)
def test_another_encoding_is_refused_with_file_position_and_its_name(file, content, encoding):
    file.write_bytes(content)
    for read in (load_config, Keys.load, lambda path: read_text(path, "")):
        with pytest.raises(ConfigError) as caught:
            read(file)
        message = str(caught.value)
        assert message.startswith(f"{file}: is not UTF-8 text (the byte at position ")
        assert f"seems to be {encoding}" in message
        assert "\n" not in message
    position, byte = re.search(r"position (\d+) is (0x..)\)", message).groups()
    assert content[int(position)] == int(byte, 16)
    content[: int(position)].decode()  # all before it is UTF-8


def test_what_is_no_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        listening.bind("socket")
    long = tmp_path / ("x" * 300)
    cases = {
        tmp_path: "is a folder",
        tmp_path / "nowhere": "cannot be read (No such file",
        tmp_path / "loop": "cannot be read (Too many levels",
        tmp_path / "socket": "is a device or a socket",
        long: "cannot be read (File name too long",
        "/dev/zero": "is a device",
        "/dev/null/x": "cannot be read (Not a directory",
        "/proc/self/mem": "cannot be read (",
        "~no-such-user/x": "Could not determine home directory",
        "a\0b": "cannot be read (embedded null ",
    }
    for path, reason in cases.items():
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert reason in str(caught.value)


def test_a_pipe_is_read_and_does_not_wait_for_ever(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(TEXT,))
    writer.start()
    assert load_config(pipe).run.name == "t"
    writer.join()
    monkeypatch.setattr(texts, "PIPE_WAIT_S", 0.01)
    with pytest.raises(ConfigError, match="nobody writes into it"):
        load_config(pipe)


def test_a_file_as_large_as_a_model_is_refused_unread(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as sparse:
        sparse.truncate(40 * 2**30)
    with pytest.raises(ConfigError, match=r"larger than 16 MiB"):
        load_config(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", r"the key 'a' stands there twice\n.*line 3"),
        ("x: {b: 1, 'b': 2}", "the key 'b' stands there twice"),
        ("a: !!int x", "int cannot have this value"),
        ("a: !!float ''", "float cannot have this value"),
        ("a: !!bool maybe", "bool cannot have this value"),
        ("a: " + "9" * 5000, r"int cannot have this value \(.*4300 digits"),
        ("a: -0b_", "int cannot have this value"),
        ("a: !!timestamp foo", "could not determine a constructor"),
        ("a: !!binary /w==", "could not determine a constructor"),
        ("a: !!set {x}", "could not determine a constructor"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ('a: "\\U00110000"', "is not valid YAML"),
        ("a: &a [*a]", "is an alias of itself"),
        ("a: &a {b: *a}", "is an alias of itself"),
        ("a: " + "[" * 500 + "]" * 500, "nested more than 64 levels"),
        ("a: " + "[" * 100_000, "nested more than 64 levels"),
        ("\ta: 1", "found character '\\\\t'"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("? [1]\n: 2", "found unhashable key"),
        ("a: *b", "undefined alias"),
        ("a: \x07", "special characters are not allowed"),
    ],
)
def test_yaml_that_is_no_configuration_is_refused_with_its_place(file, text, reason):
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)^{file}: .*{reason}"):
        read_yaml(file, "")
    with pytest.raises(ConfigError, match=r"^override "):
        load_config(file.with_name("good.yaml"), [f"loss={text}"]) if file.with_name("good.yaml").write_text(
            TEXT
        ) else None


def test_aliases_of_aliases_are_refused_before_they_multiply(file):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"line 6 holds more than 100000 values.*aliases"):
        read_yaml(file, "")


def test_plain_yaml_keeps_its_meaning():
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}", "t") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
    assert parse_yaml("[1, -0.5, true, null, text, 'q', 0x10, .inf]", "t")[:7] == [
        1,
        -0.5,
        True,
        None,
        "text",
        "q",
        16,
    ]
    assert parse_yaml("2026-01-31", "t") == "2026-01-31", "a name may be a date"
    assert parse_yaml("2026-99-99", "t") == "2026-99-99"
    assert parse_yaml("", "t") is None
