"""Nothing waits for ever: every wait in the code has a deadline."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "actors", "dashboards")

OF_RAY = {"get", "wait"}
OTHERS_OF_RAY = {
    "get_object_locations": "",  # with a timeout that passes, Ray 2.60 ends the process
    "async_get_all_actor_info": "timeout",
    "internal_kv_put": "timeout",
    "internal_kv_multi_get": "timeout",
}
"""Methods that ask another process, and the argument that is their deadline; empty where none works."""
OF_FUTURES = {"result", "join", "wait", "acquire"}
"""Methods that wait without limit when they are called without arguments."""

WITHOUT_DEADLINE = {
    "orchestrator/data/problems.py: result": "of a digest, which waits for nothing",
    "orchestrator/data/fingerprints.py: result": "of a digest, which waits for nothing",
    "orchestrator/serving/replica.py: result": "of tasks that have ended",
    "orchestrator/training/run.py: result": "a thread, whose requests to MLflow have deadlines",
    "orchestrator/training/live_metrics.py: join": "a thread of this process that only reads numbers",
    "actors/concurrent.py: join": "a thread that has just been asked to end",
    "actors/deadline.py: result": "a call, which ends by its deadline",
    "actors/deadline.py: join": "a thread whose process SIGKILL has been sent to",
    "actors/verifiers/sandbox.py: wait": "a process that SIGKILL has been sent to",
}
"""Calls that may stand without a deadline, and the reason."""


def waits(source: str) -> list[tuple[int, str]]:
    """Line and name of the calls that wait without a deadline."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, of = node.func.attr, node.func.value
        keywords = {keyword.arg for keyword in node.keywords}
        of_ray = isinstance(of, ast.Name) and of.id == "ray" and name in OF_RAY
        endless = name in OF_FUTURES and not node.args and not keywords
        unlimited = name in OTHERS_OF_RAY and OTHERS_OF_RAY[name] not in keywords
        if (of_ray and "timeout" not in keywords) or endless or unlimited:
            found.append((node.lineno, name))
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("ray.get(ref)", ["get"]),
        ("ray.get(ref, timeout=3)", []),
        ("ray.wait(refs, num_returns=1)", ["wait"]),
        ("ray.experimental.get_object_locations(refs)", ["get_object_locations"]),
        ("ray.experimental.get_object_locations(refs, timeout_ms=1)", ["get_object_locations"]),
        ("future.result()", ["result"]),
        ("future.result(timeout=3); ', '.join(names); thread.join(3.0)", []),
        ("lock.acquire()", ["acquire"]),
        ("event.wait(timeout_seconds=1); settings.get('key')", []),
    ],
)
def test_the_search_finds_waits_without_a_deadline(source, expected):
    assert [name for _, name in waits(source)] == expected


def test_every_wait_has_a_deadline():
    endless = {
        f"{path.relative_to(ROOT)}: {name}": line
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in waits(path.read_text(encoding="utf-8"))
    }
    assert endless.keys() - WITHOUT_DEADLINE.keys() == set(), (
        "give it a deadline: orchestrator/cluster/waits.py"
    )
    assert endless.keys() >= WITHOUT_DEADLINE.keys(), "an exception that is needed no more"
