"""What a run does before its first step, on a fake session, because the real one needs pools.

The loop itself runs in end_to_end/test_train.py.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from orchestrator.training import loop
from orchestrator.training.start_times import StartTimes


@pytest.mark.parametrize(
    ("branched", "evaluated", "expected"),
    [
        (False, False, ["evaluate"]),  # a kill came between the checkpoint and its evaluation
        (False, True, []),
        (True, False, ["check c_ref"]),  # the trunk has evaluated these weights, without a beta_v
    ],
)
def test_a_resumed_run_makes_up_a_due_evaluation_and_a_branch_does_not(
    monkeypatch, branched, evaluated, expected
):
    done: list[str] = []
    monkeypatch.setattr(loop, "evaluate_held_out", lambda session: done.append("evaluate"))
    monkeypatch.setattr(loop, "check_assumption", lambda session: done.append("check c_ref"))
    monkeypatch.setattr(loop, "batches", lambda session, ahead: [])
    monkeypatch.setattr(loop, "is_evaluated", lambda session: evaluated)
    monkeypatch.setattr(loop, "summary_of", lambda session, trained: {})
    session = SimpleNamespace(
        config=SimpleNamespace(rollout=SimpleNamespace(max_staleness=0)),
        clock=None,
        step=2,
        at_start=False,
        branched=branched,
        publish=lambda step: None,
        stop=SimpleNamespace(interruptible=nullcontext),
        start=StartTimes(0.0, print),
        pools=SimpleNamespace(wait_ready=lambda: None, publish=lambda step: None),
        saved_when_stopped=nullcontext,
        evaluation_is_due=lambda: True,
        tracker=SimpleNamespace(log_summary=lambda summary: None),
    )
    loop.run_steps(session)
    assert done == [*expected, "evaluate"], "the last one is the trained model's"
