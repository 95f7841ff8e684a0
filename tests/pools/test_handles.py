"""The real workers, and their fakes, offer the methods that the driver calls."""

import pytest

from actors.learning import LearnerRank
from actors.rollout import RolloutWorker
from actors.verification import VerificationWorker
from orchestrator.pools.handles import EngineHandle, RankHandle, VerifierHandle
from tests.fakes import FakeEngine, FakeRank

TURNS = {
    "load_weights",
    "sleep",
    "wake",
    "ping",
    "gpu_ids",
    "open_store",
    "setup",
    "step",
    "publish",
    "release_device",
    "take_device",
}
"""What `Pools` calls; the fakes neither generate nor save."""


def methods(protocol):
    names = {
        name for cls in protocol.__mro__ for name, value in vars(cls).items() if isinstance(value, property)
    }
    assert "ping" in names
    return names


@pytest.mark.parametrize(
    ("protocol", "worker"),
    [(EngineHandle, RolloutWorker), (VerifierHandle, VerificationWorker), (RankHandle, LearnerRank)],
)
def test_a_worker_has_every_method_of_its_handle(protocol, worker):
    assert {name for name in methods(protocol) if not callable(getattr(worker, name, None))} == set()


@pytest.mark.parametrize(("protocol", "fake"), [(EngineHandle, FakeEngine), (RankHandle, FakeRank)])
def test_a_fake_has_every_method_of_its_handle_that_takes_turns(protocol, fake):
    assert {name for name in methods(protocol) & TURNS if not callable(getattr(fake, name, None))} == set()
