"""A problem on which workers die, on a fake session, because the real one needs pools."""

import json
from types import SimpleNamespace

import pytest

from orchestrator.messages.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.pools.collect import Group
from orchestrator.pools.task import PoisonousTask, Task
from orchestrator.storage.dropped import DROPPED, dropped_problems
from orchestrator.training.dropping import drop_problem


@pytest.fixture
def session(tmp_path):
    done = []
    return SimpleNamespace(
        done=done,
        step=4,
        at_start=True,
        config=SimpleNamespace(folder=tmp_path),
        pools=SimpleNamespace(abandon_tasks=lambda: done.append("abandon")),
        problems=SimpleNamespace(drop=lambda problem: done.append(problem.id)),
        note=done.append,
    )


def poisonous(labels):
    problem = Problem.from_text("p7", "1+1", "2", source="gsm", fields={"hint": "two"})
    group = Group(problem, GroupRequest([1, 2], 8, 99))
    task = Task("generate", (group.request,), context=(3, group), labels=labels, deaths=2)
    return PoisonousTask("rollout", task, OSError("the engine's process ended"))


def test_a_step_problem_is_kept_in_a_file_named_and_drawn_no_more(session, tmp_path):
    drop_problem(session, poisonous({"step": 5, "group": 3, "problem": "p7"}))
    assert session.done[:2] == ["abandon", "p7"]
    assert "problem p7" in session.done[2]
    assert "2 workers of the rollout pool died on it in step 5" in session.done[2]
    assert not session.at_start, "c_ref is measured on the initial model only"
    assert dropped_problems(tmp_path) == {("gsm", "p7")}
    row = json.loads((tmp_path / DROPPED).read_text())
    assert row["hint"] == "two"
    assert row["cause"] == "the engine's process ended"


def test_a_problem_of_the_calibration_is_named_as_such(session):
    session.step = 0
    drop_problem(session, poisonous({"step": 0, "group": 3, "problem": "p7"}))
    assert "died on it in the calibration of c_ref" in session.done[2]
    assert session.at_start, "c_ref is measured without it"


def test_a_held_out_problem_ends_the_run(session):
    with pytest.raises(PoisonousTask, match="workers of the rollout pool died on generate"):
        drop_problem(session, poisonous({"group": 3, "problem": "p7"}))
    assert session.done == []
