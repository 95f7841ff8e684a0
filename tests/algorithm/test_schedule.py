import pytest

from orchestrator.algorithm.schedule import Schedule


@pytest.mark.parametrize(
    ("schedule", "step", "loss_term", "advantage_mix"),
    [
        (Schedule(200, 200), 1, False, False),
        (Schedule(200, 200), 200, False, False),
        (Schedule(200, 200), 201, True, False),
        (Schedule(200, 200), 400, True, False),
        (Schedule(200, 200), 401, True, True),
        (Schedule(0, 200), 1, True, False),
        (Schedule(0, 0), 1, True, True),
    ],
)
def test_phases(schedule, step, loss_term, advantage_mix):
    assert schedule.loss_term_active(step) is loss_term
    assert schedule.advantage_mix_active(step) is advantage_mix


def test_steps_count_from_one():
    with pytest.raises(ValueError, match="count from 1"):
        Schedule(0, 0).loss_term_active(0)
    with pytest.raises(ValueError, match="count from 1"):
        Schedule(0, 0).advantage_mix_active(0)
