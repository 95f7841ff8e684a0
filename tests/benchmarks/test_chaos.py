"""What `make chaos` draws and finds wrong. The faults themselves are in tests/end_to_end/test_chaos.py."""

import re
from dataclasses import replace

import pytest

from benchmarks.chaos.checks import Found, faults_of, first_other_step
from benchmarks.chaos.faults import FAULTS, drawn

QUIET = Found(
    steps=[1, 2],
    sent=[1, 2],
    problems={1: ["a", "b"], 2: ["c", "a"]},
    responses={1: "1", 2: "2"},
    weights="w",
    accuracy=0.5,
    held_out=300,
    dropped=[],
    seconds=1.0,
)


def test_each_kind_comes_once_before_any_comes_twice():
    faults = drawn(len(FAULTS) + 3, seed=1, kinds=[], left_out=[])
    assert {fault.kind for fault in faults[: len(FAULTS)]} == {fault.kind for fault in FAULTS}
    assert faults == drawn(len(FAULTS) + 3, seed=1, kinds=[], left_out=[])
    assert faults != drawn(len(FAULTS) + 3, seed=2, kinds=[], left_out=[])


def test_kinds_that_the_machine_cannot_have_are_left_out():
    kinds = {fault.kind for fault in drawn(40, seed=0, kinds=[], left_out=["network", "disk"])}
    assert kinds == {fault.kind for fault in FAULTS} - {"network-cut", "network-loss", "disk"}


def test_a_run_like_the_quiet_one_has_nothing_wrong():
    assert faults_of(QUIET, QUIET, 2) == []
    assert first_other_step(QUIET, QUIET) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [1, 2, 2]}, r"journal: missing \[\], more than once \[2\]"),
        ({"steps": [2]}, r"journal: missing \[1\]"),
        ({"sent": [1]}, r"MLflow: missing \[2\]"),
        ({"problems": {1: ["a", "b"], 2: ["a", "c"]}}, r"other problems than the quiet run: \[2\]"),
        ({"responses": {1: "1", 2: "x"}}, "other samples than the quiet run from step 2 on"),
        ({"weights": "x"}, "other weights than the quiet run"),
        ({"dropped": ["row"]}, "1 innocent problems were dropped"),
        ({"accuracy": 0.3}, "accuracy 0.300, quiet 0.500: more than 0.122 apart"),
    ],
)
def test_what_is_wrong_is_found(change, message):
    (wrong,) = faults_of(replace(QUIET, **change), QUIET, 2)
    assert re.search(message, wrong)


def test_the_first_step_with_other_samples_is_named():
    assert first_other_step(replace(QUIET, responses={1: "1", 2: "x"}), QUIET) == 2
