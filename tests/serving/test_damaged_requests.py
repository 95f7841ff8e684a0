"""Damaged requests: a few of those that `python -m benchmarks.fuzz.requests` sends."""

import json

import pytest

from benchmarks.fuzz.requests import VALID, Case, cases, fault, local_send, run


@pytest.fixture(scope="module")
def send():
    return local_send()


def test_each_is_answered_or_refused_by_a_message_that_names_a_field(send):
    statuses, faults = run(cases(60, seed=3), send)
    assert faults == []
    assert statuses[200] > 3, "some are damaged where it does not matter"
    assert statuses[400] > 20


@pytest.mark.parametrize(("path", "tree"), VALID)
def test_undamaged_they_are_answered(send, path, tree):
    status, text = send(Case(path, json.dumps(tree).encode(), "none"))
    assert (status, fault(status, text)) == (200, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "1"}], "": 0}', '""'),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}', "messages[0].content"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "1"}], "seed": 1e400}', "seed"),
        (b'{"model": "tiny", "messages": [], "model": "tiny"}', "model"),
        (b"[" * 100_000, None),
        ("{}".encode("utf-16"), None),
        (b'{"\\udc00": 1}', None),
    ],
)
def test_what_is_hard_to_name_is_refused_all_the_same(send, body, param):
    status, text = send(Case("chat/completions", body, "by hand"))
    assert (status, fault(status, text)) == (400, None)
    assert json.loads(text)["error"]["param"] == param


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, json.dumps({"error": {"message": "an error inside the service", "param": "n"}})),
        (503, json.dumps({"error": {"message": "lost", "param": "n"}})),
        (400, json.dumps({"error": {"message": "something is wrong", "param": None}})),
        (400, "Bad Request"),
        (200, "{}"),
        (200, 'data: {"error": {"message": "x"}}\n\n'),
    ],
)
def test_an_internal_error_or_a_refusal_that_names_nothing_is_a_fault(status, text):
    assert fault(status, text)
