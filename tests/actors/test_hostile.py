"""Hostile answers: none runs as Python, none breaks a worker, and none changes another one's verdict."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.verifiers.loading import run_check
from benchmarks.hostile import REFERENCES, run_share
from benchmarks.hostile_answers import PIECES, hostile_answers
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import UNJUDGED, Status

SAMPLE = 132
BY_RULES = ("math", "number", "choice", "text", "token_f1", "json")
"""Verifiers that need no deadline for a short response."""


@pytest.mark.parametrize(
    ("count", "verifiers"), [("440", BY_RULES), ("154", ("math_verify_plain",))], ids=["rules", "math-verify"]
)
def test_nothing_of_an_answer_runs_as_python(count, verifiers):
    command = [sys.executable, str(Path(__file__).with_name("audited_checks.py")), count, *verifiers]
    project = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}  # benchmarks/ is not installed
    printed = subprocess.run(command, env=project, check=True, stdout=subprocess.PIPE).stdout
    report = json.loads(printed.splitlines()[-1])
    assert report["works"], "the audit sees a text that runs"
    assert report["found"] == []
    assert report["ended"] > report["checks"] // 2


def test_a_sample_of_all_kinds_has_statuses_and_verdicts_as_in_a_quiet_run():
    verifiers = ("math", "math", "json", "pattern")  # the last one's expression backtracks without end
    outcome = run_share(SAMPLE, seed=3, share=0, shares=1, timeout_s=1.5, memory_mib=512, verifiers=verifiers)
    assert outcome.faults == []
    assert Status.TIMEOUT in {status for _, _, status in outcome.statuses}
    assert outcome.statuses.total() == SAMPLE + SAMPLE // 10


def test_the_same_seed_makes_the_same_answers():
    first, second = (list(hostile_answers(60, seed=1)) for _ in range(2))
    assert first == second
    assert list(hostile_answers(60, seed=2)) != first


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(BY_RULES),
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=40),
    st.sampled_from([r"\boxed{%s}", "The answer is %s", "#### %s", "%s", "```json\n%s\n```"]),
)
def test_a_short_response_of_any_signs_is_judged(verifier, answer, form):
    response = form.replace("%s", answer)
    problem = Problem.from_text("p", "", REFERENCES[verifier][0])
    verdict = run_check(verifier_text(verifier), response, problem)
    assert verdict.status not in UNJUDGED, verdict.detail
