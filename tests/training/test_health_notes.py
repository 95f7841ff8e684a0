"""Broken health rules: said once, kept over a resumption, and the end of a run only where it is asked for."""

import pytest

from orchestrator.algorithm.health import Health
from orchestrator.errors import RunError
from orchestrator.training.health_notes import note_health
from tests.settings import configure

WELL, ILL = {"policy/entropy": 0.3}, {"policy/entropy": 0.0}


class FakeSession:
    """The part of a session that health needs; a real one starts three pools."""

    def __init__(self, **health):
        self.config = configure(health={"window": 2} | health)
        self.health = Health(self.config.health.thresholds, self.config.health.window)
        self.step = 0
        self.notes, self.lines, self.saved = [], [], []
        self.note, self.say = self.notes.append, self.lines.append
        self.save = lambda: self.saved.append(self.step)

    def train(self, *steps):
        for metrics in steps:
            self.step += 1
            self.health.judge(metrics)
            note_health(self)


def test_a_rule_that_breaks_is_noted_once_and_so_is_its_end():
    session = FakeSession()
    session.train(WELL, WELL, ILL, ILL, ILL, ILL, WELL, WELL)
    (note,) = session.notes
    assert note.startswith("step 4: unhealthy: policy/entropy is 0 over 2 steps, below health.entropy=0.01. ")
    assert "lower learning.lr" in note
    assert session.lines == ["step 7: policy/entropy is healthy again"]
    assert session.saved == []


def test_only_if_asked_a_broken_rule_ends_the_run_after_a_checkpoint():
    session = FakeSession(stop=True)
    with pytest.raises(RunError, match=r"step 4: policy/entropy is 0 .* health.stop=false"):
        session.train(WELL, WELL, ILL, ILL, ILL)
    assert session.saved == [4]


def test_steps_of_an_earlier_session_count():
    before, after = FakeSession(), FakeSession()
    before.train(WELL, ILL)
    after.health.replay([WELL, ILL])
    assert after.health.judge(ILL) == before.health.judge(ILL)
