"""Mutated configurations and command lines, through all that happens before anything starts.

    python -m benchmarks.fuzz.configs --cases 300 --seed 0

Each case takes a small valid command of `laser train`, `check`, `sft`, `eval`, `sweep` or `serve`, and
damages its settings, its file's text or its overrides. The command then runs up to the point where it would
start Ray. A case passes if the command comes that far, or ends with status 2 and one message that names a
key, a file or the override. Everything else fails: a traceback, another status, a case that takes longer
than `CASE_S`.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "experiments" / "quickstart" / "base"
COMMANDS = ("train", "check", "sft", "eval", "sweep", "serve")
CASE_S = 60
"""Seconds that a case may take."""

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 10**12, 10**400, -(10**30), 0.5, 1e308, -1e-320, float("nan"),
    float("inf"), -float("inf"), "", " ", "\n", "1e5", "1e999", "NaN", "0x10", "null", "true", "2026-01-31",
    "x" * 300, "é" * 2000, "nul \0", "\ud83d", "\U0001f600", "-x", "--help", "a b#?%20&;'\"", "{{ x }}",
    "%s%n", "${HOME}/x", "$(ls)", "<|im_end|>", "a:b", "x:y:z", "actors.math_check:verify_math", "os:system",
    [], [[]], [1, [2, [3]]], {}, {"a": {"b": None}}, {1: 2}, {"": ""}, {"a+b": 1, "a=b": [1]}, [None],
    ["x"] * 40,
)  # fmt: skip
PATHS = (
    "~", "~/x", "~no-such-user/x", "/", ".", "..", "/dev/null", "/dev/null/x", "/proc/x", "/dev/zero", "loop",
    "loop/x", "lost", "pipe", "file", "file/x", "binary.safetensors", "latin.yaml", "utf16.yaml",
    "empty.yaml",    "folder", "train.jsonl", "test.jsonl", "owner/no-such-model", "models:/x@y", "models:/", "s3://b/x",
    "file:///x", "http://", "http://127.0.0.1:1", "sqlite://", "sqlite:////dev/null/x.db", "ftp://h/x",
    "postgresql://u:p@127.0.0.1:1/db", "nothing://x", "a" * 256, "b/" * 2500, "-", "-o", " ", "\\\\host\\x",
)  # fmt: skip
TAGS = (
    "!!binary /w==",
    "!!python/object/apply:os.system [ls]",
    "!!int x",
    "!!timestamp x",
    "!!set {a}",
    "!new x",
)
TEXTS = (
    "\t",
    "\0",
    "\ufeff",
    "\x07",
    "- ",
    ": ",
    "? ",
    "*a",
    "&a ",
    "<<: ",
    "---\n",
    "...\n",
    "'",
    '"',
    "[",
    "}",
)


class WouldStart(BaseException):
    """Raised in place of the start of Ray. No handler of the product takes it."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a case."""

    name: str
    outcome: str
    """`accepted`, `refused` or `failed`."""
    message: str
    command: list[str]


def write_inputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Write data and odd files, and return the valid configuration of each command."""
    rows = [{"problem": f"{number}+1=", "answer": str(number + 1)} for number in range(12)]
    worked = [row | {"solution": row["answer"]} for row in rows]
    for name, content in {"train": rows, "test": rows[:3], "worked": worked}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "file").write_text("x")
    (folder / "binary.safetensors").write_bytes(b"\x40" + bytes(7) + b'{"a": {}}' + bytes(range(256)))
    (folder / "latin.yaml").write_bytes("run: {name: é}".encode("latin-1"))
    (folder / "utf16.yaml").write_bytes("run: {name: e}".encode("utf-16"))
    (folder / "empty.yaml").touch()
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "lost").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    train: dict[str, Any] = {
        "run": {"name": "fuzzed", "steps": 1, "dir": "runs"},
        "model": {"path": str(MODEL)},
        "data": {"train": "train.jsonl", "eval": "test.jsonl", "instruction": ""},
        "rollout": {
            "prompts_per_step": 4, "samples_per_prompt": 2, "max_prompt_tokens": 64,
            "max_response_tokens": 32,
            "cpus": 0.5, "engine_args": {"enforce_eager": True}, "resources": {},
        },
        "verification": {"cpus": 0.25, "timeout_s": 5},
        "learning": {"cpus_per_rank": 0.25, "tokens_per_micro_batch": 1024, "betas": [0.9, 0.99]},
        "loss": {"alpha": 0.1, "beta_v": 0.1, "c_ref": -23.0},
        "self_reward": {"token": "<|self_reward|>"},
        "tracking": {"experiment": "fuzz"},
    }  # fmt: skip
    (folder / "base.yaml").write_text(yaml.safe_dump(train))
    short = {key: train[key] for key in ("run", "model", "self_reward")}
    return {
        "train": train,
        "check": train,
        "sft": short | {"data": {"train": "worked.jsonl", "instruction": ""}, "learning": {"batch_size": 4}},
        "eval": {
            "model": str(MODEL), "data": ["test.jsonl:2"], "dir": "runs", "instruction": "", "score": "none",
            "rollout": {"cpus": 0.5, "max_prompt_tokens": 64, "max_response_tokens": 32},
        },
        "sweep": {
            "name": "fuzzed", "base": "base.yaml", "space": {"loss.alpha": {"grid": [0.1, 0.2]}},
            "seeds": [0], "settings": {"run": {"steps": 2}},
        },
        "serve": {
            "models": {"m": str(MODEL)}, "port": 8123, "engine": {"cpus": 0.5, "replicas": 1},
            "limits": {"queued": 4},
        },
    }  # fmt: skip


@contextlib.contextmanager
def stopped_before_start() -> Iterator[None]:
    """Let each command end where it would start Ray, with `WouldStart`."""

    def start(*_: object, **__: object) -> None:
        raise WouldStart

    places = (
        "orchestrator.training.run._start_or_resume",
        "orchestrator.training.cold_start._train",
        "orchestrator.evaluation.run.EvalSession",
        "orchestrator.sweeps.sweep._Sweep",
        "orchestrator.serving.launch.Service.run",
        "ray.init",
    )
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch(place, start))
        yield


def run_case(name: str, valid: dict[str, dict[str, Any]]) -> Result:
    """Make and run the case of a name such as `0:17`, in the current folder."""
    choose = random.Random(name)
    command = choose.choice(COMMANDS)
    tree = json.loads(json.dumps(valid[command]))
    overrides: list[str] = []
    damage = choose.choice(("settings", "settings", "settings", "settings", "overrides", "text", "all"))
    if damage in ("settings", "all"):
        for _ in range(choose.choice((1, 1, 1, 2))):
            choose.choice((_replace, _exchange, _exchange, _exchange, _remove, _add))(choose, tree)
    if damage in ("overrides", "all"):
        overrides = [_override(choose, tree) for _ in range(choose.choice((1, 2)))]
    text = _file_text(choose, tree)
    Path("config.yaml").write_bytes(_damaged(choose, text) if damage in ("text", "all") else text)
    arguments = _arguments(choose, command, tree, overrides)
    outcome, message = _attempt(arguments)
    return Result(f"{name} {command}", outcome, message, arguments)


def _attempt(arguments: list[str]) -> tuple[str, str]:
    from orchestrator.cli import main

    out, err = io.StringIO(), io.StringIO()
    status: object = None
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(CASE_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
    except WouldStart:
        return "accepted", ""
    except SystemExit as end:  # argparse's own refusal
        status = end.code
    except BaseException:
        return "failed", traceback.format_exc()
    finally:
        signal.alarm(0)
    message = err.getvalue()
    if status == 0:
        return "accepted", ""
    outcome = "refused" if status == 2 and _is_clear(message, arguments) else "failed"
    return outcome, f"status {status}: {message}"


def _is_clear(message: str, arguments: list[str]) -> bool:
    """Whether a refusal is one message that names a key, a file, or what stands on the command line."""
    if "Traceback" in message or len(re.findall(r"^laser \w+: ", message, re.MULTILINE)) > 1:
        return False
    names = r"[a-z_]+\.[a-z_]+|--\w+|override|arguments|unknown key"
    keys = r"\b(models?|base|data|seeds|space|where|metric|name|port|host|folder|pools|run|search)\b"
    given = any(str(Path(argument)) in message for argument in arguments[1:] if argument)
    return given or re.search(f"{names}|{keys}", message) is not None


def _too_long(*_: object) -> None:
    raise TimeoutError(f"the case takes longer than {CASE_S} s")


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a tree, sections included."""
    for key, below in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(below, dict | list):
            yield from _leaves(below, (*path, key))


def _parent(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        tree = tree[key]
    return tree


def _value(choose: random.Random) -> Any:
    return choose.choice(PATHS) if choose.random() < 0.4 else choose.choice(VALUES)


def _replace(choose: random.Random, tree: dict[str, Any]) -> None:
    if places := list(_leaves(tree)):
        place = choose.choice(places)
        _parent(tree, place)[place[-1]] = _value(choose)


def _exchange(choose: random.Random, tree: dict[str, Any]) -> None:
    """Put another value of its own type in the place of one: it passes the types more often."""
    places = [
        place for place in _leaves(tree) if not isinstance(_parent(tree, place)[place[-1]], dict | list)
    ]
    if not places:
        return
    place = choose.choice(places)
    old = _parent(tree, place)[place[-1]]
    same = [value for value in (*VALUES, *PATHS) if type(value) is type(old)]
    numbers = [0, 1, 2, 7, 100, 10**6, 10**9, 10**15, 0.01, 3.5, 1e-9, 1e9, 1e300, -2]
    _parent(tree, place)[place[-1]] = choose.choice(same if isinstance(old, str | bool) else numbers)


def _remove(choose: random.Random, tree: dict[str, Any]) -> None:
    if places := list(_leaves(tree)):
        place = choose.choice(places)
        del _parent(tree, place)[place[-1]]


def _add(choose: random.Random, tree: dict[str, Any]) -> None:
    sections = [tree, *(tree[key] for key in tree if isinstance(tree[key], dict))]
    known = choose.choice([str(key) for key in tree] or ["run"])
    odd = (known[:-1], known.upper(), f"{known} ", "", "a.b", "__class__", "é", "x" * 300, "run", "~", "null")
    choose.choice(sections)[choose.choice(odd)] = _value(choose)


def _override(choose: random.Random, tree: dict[str, Any]) -> str:
    places = [".".join(map(str, place)) for place in _leaves(tree)] or ["run.steps"]
    key = choose.choice(places)
    if choose.random() < 0.2:
        key = choose.choice(["a..b", ".a", "a.", "", "run.name.x", "loss", "loss.alhpa", "x" * 400, "-a.b"])
    text = choose.choice(
        [
            json.dumps(choose.choice(VALUES[:16]), default=str), choose.choice(PATHS), choose.choice(TAGS),
            "[1", "{", "&a [*a]", "9" * 5000, "'", "a: b: c", "", "[" * 500, "=", "a=b", "\x07", "null",
        ]
    )  # fmt: skip
    return choose.choice([f"{key}={text}"] * 8 + [key, text, f"={text}"]).replace("\0", "")


def _file_text(choose: random.Random, tree: dict[str, Any]) -> bytes:
    dump: Callable[..., str] = choose.choice((yaml.safe_dump, json.dumps))
    try:
        return dump(tree).encode(errors="surrogatepass")
    except (TypeError, yaml.YAMLError):  # keys of other types, for JSON
        return yaml.safe_dump(tree, sort_keys=False).encode(errors="surrogatepass")


def _damaged(choose: random.Random, text: bytes) -> bytes:
    """The text of a file with one damage."""
    at = choose.randrange(len(text) + 1)
    line = b"a%d: &a%d [%s]\n"
    bomb = b"a0: &a0 [1]\n" + b"".join(
        line % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 20)
    )
    damages: list[Callable[[], bytes]] = [
        lambda: text[:at],
        lambda: text[:at] + bytes([choose.randrange(256)]) + text[at + 1 :],
        lambda: text[:at] + choose.choice(TEXTS).encode() + text[at:],
        lambda: text.decode(errors="replace").encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + text,
        lambda: text + b"# \xe9\n",
        lambda: text + bomb,
        lambda: text + b"\nx: " + b"[" * 900,
        lambda: text + b"\n" + text,
        lambda: text.replace(b": ", b": " + choose.choice(TAGS).encode() + b" ", 1),
        lambda: b"- " + text,
        lambda: choose.randbytes(choose.randrange(2000)),
        lambda: b"",
    ]
    return choose.choice(damages)()


def _arguments(choose: random.Random, command: str, tree: dict[str, Any], overrides: list[str]) -> list[str]:
    path = "config.yaml" if choose.random() < 0.95 else choose.choice(PATHS)
    if command == "eval":
        return ["eval", "--config", path, *overrides]
    if command != "serve":
        return [command, path, *overrides]
    models = tree.get("models")
    named = (
        [f"{name}={model}" for name, model in models.items()] if isinstance(models, dict) else [str(models)]
    )
    settings = [f"{key}={json.dumps(value, default=str)}" for key, value in tree.items() if key != "models"]
    words = [*(word for model in named for word in ("--model", model)), *settings, *overrides]
    if choose.random() < 0.3:
        words += ["--keys-file", choose.choice(PATHS)]
    return ["serve", *(word.replace("\0", "") for word in words)]


def run_cases(cases: int, seed: int) -> list[Result]:
    """Run so many cases in a temporary folder."""
    variables = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "100"}
    before = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, variables),
        stopped_before_start(),
    ):
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "LASER_API_KEY"):
            os.environ.pop(name, None)
        os.chdir(folder)
        try:
            valid = write_inputs(Path(folder))
            return [run_case(f"{seed}:{number}", valid) for number in range(cases)]
        finally:
            os.chdir(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print each case")
    options = parser.parse_args()
    results = run_cases(options.cases, options.seed)
    for result in results:
        if options.verbose or result.outcome == "failed":
            shown = " ".join(map(ascii, result.command))[:600]
            print(f"{result.outcome} {result.name}: {shown}\n  {ascii(result.message)[:600]}")
            if result.outcome == "failed":
                print(result.message[-3000:].encode(errors="backslashreplace").decode())
    print(*(f"{outcome} {count}" for outcome, count in sorted(Counter(r.outcome for r in results).items())))
    return int(any(result.outcome == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
