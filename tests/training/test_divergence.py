"""What a run says when its numbers are not finite."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.messages.batches import FAULTS, StepSums
from orchestrator.storage.checkpoints import TrainingState
from orchestrator.training import skipped
from orchestrator.training.divergence import Diverged, diverged
from orchestrator.training.session import Session
from tests.settings import configure

NEWEST = Path("runs/trial/checkpoints/step-000005")


@pytest.mark.parametrize(
    ("learning", "faults", "cause"),
    [
        ({"lr": 1e30}, (), "learning.lr=1e+30: lower it to at most 0.01"),
        ({"lr": 0.5}, ("the gradients",), "learning.lr=0.5: lower it to at most 0.01"),
        ({"lr": 1e30}, ("the engine's log-probs",), "raise rollout.dtype=auto to float32"),
        ({}, ("the reference model's log-probs",), "look at models/base"),
        (
            {"dtype": "bfloat16"},
            ("the loss", "the gradients"),
            "learning.dtype=bfloat16, or learning.lr=1e-06",
        ),
    ],
)
def test_the_error_has_the_likely_cause_and_the_checkpoint_that_is_left(learning, faults, cause):
    assert set(faults) <= set(FAULTS)
    error = diverged("3 steps had no update", configure(learning=learning), faults, NEWEST)
    assert isinstance(error, Diverged)
    assert str(error).startswith("3 steps had no update. The likely cause is ")
    assert cause in str(error)
    assert str(error).endswith(f"The last healthy checkpoint is {NEWEST}.")
    assert str(diverged("x", configure(), (), None)).endswith("There is no checkpoint yet.")


def test_a_resumed_run_counts_on_where_steps_without_an_update_were_counted(monkeypatch):
    """On a fake session, because the real one needs pools: a stop has saved a step without an update."""
    monkeypatch.setattr(skipped, "keep_rollouts", lambda *arguments: Path("step.parquet"))
    session = SimpleNamespace(
        config=configure(learning={"max_skipped_steps": 3}),
        problems=SimpleNamespace(restore=lambda order: None),
        note=lambda text: None,
        diverged=lambda text, faults: Diverged(text),
    )
    state = TrainingState(7, 1, {}, -9.0, None, 1.0, None, skipped_in_a_row=2)
    Session._restore(session, TrainingState.parse(state.text({})))
    with pytest.raises(Diverged, match="3 steps in a row, up to step 7, had no update"):
        skipped.note_skipped(session, [StepSums(skipped=1, faults=("the loss",))], None, None, None)
    Session._restore(session, TrainingState.parse(state.text({})))
    skipped.note_skipped(session, [StepSums()], None, None, None)
    assert session.skipped_in_a_row == 0
