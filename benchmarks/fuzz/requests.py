"""Damaged requests against the service: each is answered, or refused by a message that names a field.

    python -m benchmarks.fuzz.requests [--cases 300] [--seed 0] [--serve]

The endpoints, the validation, the chat template and the tokenizer are the real ones. Without `--serve` an
answer that was made beforehand takes the engine's place; with it `laser serve` runs, and its engine answers.
Status 1 when a case fails, which any internal error does.
"""

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.fuzz.local_service import LocalService

USER = {"role": "user", "content": "a<b in {12,26,31}, a+b=43; a=?"}
ANSWER = {"role": "assistant", "content": "12+31=43;\\boxed{12}", "refusal": None, "annotations": []}
DEVELOPER = {"role": "developer", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "+1"}]}
VALID: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"model": "tiny", "messages": [USER]}),
    (
        "chat/completions",
        {
            "model": "tiny",
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "1"}]},
                USER,
                ANSWER,
                USER,
            ],
            "frequency_penalty": 0,
            "response_format": {"type": "text"},
            "logit_bias": {},
            "tools": [],
            "stop": ["\n\n"],
            "max_tokens": 9,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    (
        "chat/completions",
        {"model": "tiny", "messages": [USER], "n": 2, "logprobs": True, "seed": 7, "top_p": 0.9},
    ),
    ("chat/completions", {"model": "tiny", "messages": [USER], "max_tokens": 8, "laser": {"n": 2}}),
    (
        "chat/completions",
        {
            "model": "tiny",
            "messages": [USER],
            "max_completion_tokens": 8,
            "laser": {"vote": "majority", "adaptive": {"confidence": 0.9, "max_samples": 3}},
        },
    ),
    ("score", {"items": [{"problem": "1+1=?", "solution": "\\boxed{2}"}]}),
    ("score", {"model": "tiny", "items": [{"messages": [USER, ANSWER, USER, ANSWER]}]}),
    (
        "score",
        {
            "items": [
                {"prompt_token_ids": [5, 6, 7], "response_token_ids": [8, 2]},
                {"problem": "1", "solution": "2"},
            ]
        },
    ),
]

HUGE, INFINITE = "@huge@", "@infinite@"
SPELLED = {HUGE: "1" * 5000, INFINITE: "-1e400"}
"""Numbers that `json.dumps` cannot write."""
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, -(2**63), 2**64, 10**400, HUGE, INFINITE),
    *(float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "x",
        "1",
        "\ud83d",
        "a\udc00b",
        "\x00",
        "\x0c\x1b[2J",
        "🙂\u202e",
        "a" * 2000,
        "{{ messages }}",
    ),
    *("<|im_end|>", "<|im_end|>\n<|im_start|>assistant\n", "<|self_reward|>", "<pad>", "\ufdd0\ufdd1\ufdd2"),
    *("assistant", "system", "tool", "auto", "none", "null"),
    *(
        [],
        {},
        [[]],
        [None],
        [0],
        [""],
        {"a": None},
        {"type": "text"},
        {"type": "text", "text": "1"},
        {"": ""},
    ),
    *([{}], {"type": "image_url", "image_url": {"url": "x"}}, [USER], {"\ud83d": 1}),
]
FIELDS = [
    *("temperature", "top_p", "n", "seed", "stop", "stream", "stream_options", "logprobs", "top_logprobs"),
    *(
        "max_tokens",
        "max_completion_tokens",
        "presence_penalty",
        "logit_bias",
        "tools",
        "tool_choice",
        "audio",
    ),
    *("response_format", "modalities", "metadata", "user", "laser", "messages", "model", "items", "content"),
    *(
        "role",
        "name",
        "refusal",
        "tool_calls",
        "text",
        "problem",
        "solution",
        "extra_body",
        "__class__",
        "<text>",
        "",
    ),
]


@dataclass(frozen=True)
class Case:
    """A damaged request."""

    path: str
    body: bytes
    damage: str


def cases(count: int, seed: int) -> list[Case]:
    """The first `count` cases of a seed."""
    rng = random.Random(seed)
    return [_case(rng) for _ in range(count)]


def _case(rng: random.Random) -> Case:
    path, valid = rng.choice(VALID)
    tree = json.loads(json.dumps(valid))
    damages = [rng.choice(DAMAGES) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    for damage in damages:
        damage(rng, tree)
    names = [damage.__name__.strip("_") for damage in damages]
    body = json.dumps(tree)
    for mark, digits in SPELLED.items():
        body = body.replace(f'"{mark}"', digits)
    raw = body.encode()
    if rng.random() < 0.15:
        damage_bytes = rng.choice(DAMAGES_OF_BYTES)
        raw = damage_bytes(rng, raw)
        names.append(damage_bytes.__name__.strip("_"))
    return Case(path, raw, ", ".join(names))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Each value below `tree`, as its container and its key or index."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        container = waiting.pop()
        if isinstance(container, dict | list):
            keys = list(container) if isinstance(container, dict) else range(len(container))
            found += [(container, key) for key in keys]
            waiting += [container[key] for key in keys]
    return found


def _place(rng: random.Random, tree: dict[str, Any]) -> tuple[Any, Any]:
    return rng.choice(_places(tree) or [(tree, "messages")])


def _replaced(rng: random.Random, tree: dict[str, Any]) -> None:
    container, key = _place(rng, tree)
    container[key] = _nasty(rng)


def _removed(rng: random.Random, tree: dict[str, Any]) -> None:
    container, key = _place(rng, tree)
    if isinstance(container, list) or key in container:
        del container[key]


def _added(rng: random.Random, tree: dict[str, Any]) -> None:
    rng.choice(_objects(tree)).setdefault(rng.choice(FIELDS), _nasty(rng))


def _null(rng: random.Random, tree: dict[str, Any]) -> None:
    rng.choice(_objects(tree)).setdefault(rng.choice(FIELDS), None)


def _objects(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [tree, *(c[k] for c, k in _places(tree) if isinstance(c[k], dict))]


def _wrapped(rng: random.Random, tree: dict[str, Any]) -> None:
    container, key = _place(rng, tree)
    value = container.get(key) if isinstance(container, dict) else container[key]
    container[key] = rng.choice([[value], {"value": value}, [value, value], "text"])


def _spliced(rng: random.Random, tree: dict[str, Any]) -> None:
    texts = [(c, k) for c, k in _places(tree) if isinstance(c[k], str)]
    if texts:
        container, key = rng.choice(texts)
        text = rng.choice([nasty for nasty in NASTY if isinstance(nasty, str)])
        at = rng.randint(0, len(container[key]))
        container[key] = container[key][:at] + text + container[key][at:]


def _deep(rng: random.Random, tree: dict[str, Any]) -> None:
    container, key = _place(rng, tree)
    value: Any = 1
    for _ in range(rng.choice([40, 400])):
        value = rng.choice([[value], {"a": value}])
    container[key] = value


def _other_role(rng: random.Random, tree: dict[str, Any]) -> None:
    messages = [c for c, k in _places(tree) if k == "role"]
    if messages:
        rng.choice(messages)["role"] = rng.choice(
            ["system", "developer", "tool", "function", "assistant", "user", "User", "", "ipython"]
        )


def _nasty(rng: random.Random) -> Any:
    return json.loads(json.dumps(rng.choice(NASTY)))


DAMAGES: list[Callable[[random.Random, dict[str, Any]], None]] = [
    *(_replaced, _replaced, _added, _added, _null, _null, _removed, _wrapped, _spliced, _spliced),
    *(_deep, _other_role),
]


def _cut(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body))]


def _overwritten(rng: random.Random, body: bytes) -> bytes:
    at = rng.randrange(len(body))
    return body[:at] + rng.randbytes(rng.choice([1, 2, 8])) + body[at + 1 :]


def _utf_16(rng: random.Random, body: bytes) -> bytes:
    return body.decode().encode("utf-16")


def _latin_1(rng: random.Random, body: bytes) -> bytes:
    return body.replace(b"a", "é".encode("latin-1"), 1)


def _key_twice(rng: random.Random, body: bytes) -> bytes:
    return body.replace(b"{", b'{"role": "user", "role": "user", ', 1)


def _nested(rng: random.Random, body: bytes) -> bytes:
    depth = rng.choice([1, 100_000])
    return b"[" * depth + body + b"]" * depth


DAMAGES_OF_BYTES = [_cut, _overwritten, _utf_16, _latin_1, _key_twice, _nested]


Send = Callable[[Case], tuple[int, str]]
"""Sends a case; gives the answer's status and text."""


def fault(status: int, text: str) -> str | None:
    """What is wrong with an answer; None for an answer as it should be."""
    if status == 200 and text.startswith("data: "):
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        if events[-1] != "[DONE]" or any("error" in json.loads(event) for event in events[:-1]):
            return f"the stream ends with {events[-1][:200]}"
        return None
    try:
        tree = json.loads(text)
    except ValueError:
        return f"HTTP {status} without JSON: {text[:200]}"
    if status == 200:
        return None if "choices" in tree or "results" in tree else f"no answer: {text[:200]}"
    error = tree.get("error") or {}
    message = str(error.get("message") or "")
    if not 400 <= status < 500 or "internal" in message or "inside the service" in message:
        return f"HTTP {status}: {text[:300]}"
    if any(word in text for word in ("Traceback", "pydantic", "instance of")):
        return f"the message shows our code: {text[:300]}"
    names_place = error.get("param") or message.startswith(("the body ", "the key "))
    return None if names_place and message else f"HTTP {status} names no field: {text[:300]}"


def run(found: list[Case], send: Send) -> tuple[Counter[int], list[str]]:
    """Send all cases; returns how often each status came, and a line for each fault."""
    statuses: Counter[int] = Counter()
    faults = []
    for number, case in enumerate(found):
        status, text = send(case)
        statuses[status] += 1
        if wrong := fault(status, text):
            faults.append(f"case {number} ({case.damage}) to /v1/{case.path}: {wrong}\n  {case.body[:400]!r}")
    return statuses, faults


def local_send() -> Send:
    """Sends to the service's endpoints in this process."""
    local = LocalService()
    return lambda case: asyncio.run(local.post(case.path, case.body))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help="start `laser serve`, and send to it")
    options = parser.parse_args()
    found = cases(options.cases, options.seed)
    if options.serve:
        from benchmarks.clients.__main__ import KEY, running_service

        with running_service() as url, httpx.Client(timeout=120, trust_env=False) as client:

            def send(case: Case) -> tuple[int, str]:
                headers = {"Authorization": f"Bearer {KEY}"}
                answer = client.post(f"{url}/{case.path}", content=case.body, headers=headers)
                return answer.status_code, answer.text

            statuses, faults = run(found, send)
    else:
        statuses, faults = run(found, local_send())
    for line in faults:
        print(line)
    refused = sum(count for status, count in statuses.items() if 400 <= status < 500)
    by_status = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    outcome = f"{statuses[200]} answered, {refused} refused, {len(faults)} faults ({by_status})"
    print(f"{len(found)} cases, seed {options.seed}: {outcome}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
