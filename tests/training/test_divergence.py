"""What a run says when its numbers are not finite."""

from pathlib import Path

import pytest

from orchestrator.messages.batches import FAULTS
from orchestrator.training.divergence import Diverged, diverged
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
