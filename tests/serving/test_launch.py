"""`laser serve`: new weights while it runs."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.config.serving import ServeConfig
from orchestrator.errors import ConfigError, RunError
from orchestrator.serving.launch import Service
from orchestrator.storage.checkpoints import Checkpoints, TrainingState

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"


class Followed(Service):
    """A service whose models and deployments are words; what `broken` names cannot be deployed."""

    def __init__(self, newest, broken=()):
        self.newest, self.broken, self.deployed, self.said = newest, broken, [], []
        super().__init__(ServeConfig(models={"m": "run"}), self.said.append)

    def resolve(self, name, hold):
        if isinstance(self.newest, ConfigError):
            raise self.newest
        return SimpleNamespace(path=f"/{self.newest}", origin=self.newest)

    def deploy(self, name, model):
        self.deployed.append(model.origin)
        if model.origin in self.broken:
            raise RunError("no replica started")


class Following(Service):
    """A service of real weights, whose deployments need no engine."""

    def deploy(self, name, model):
        assert Path(model.path, "model.safetensors").exists()


def save_base(checkpoints, step):
    state = TrainingState(step, 1, {}, None, None, 0.0, None)

    def write(folder):
        shutil.copytree(BASE, folder / "export")

    checkpoints.save(state, write)


def kept(checkpoints):
    return sorted(int(path.name.removeprefix("step-")) for path in checkpoints.folder.glob("step-*"))


class TestFollow:
    @pytest.fixture(autouse=True)
    def _no_key(self, monkeypatch):
        monkeypatch.delenv("LASER_API_KEY", raising=False)

    def test_new_weights_are_deployed_once(self):
        service = Followed("step 1")
        service.follow()
        assert service.deployed == []
        service.newest = "step 2"
        service.follow()
        service.follow()
        assert service.deployed == ["step 2"]
        assert service.served["m"].origin == "step 2"

    def test_weights_that_no_replica_starts_with_are_taken_back_and_not_tried_again(self):
        service = Followed("step 1", broken={"step 2"})
        service.newest = "step 2"
        service.follow()
        service.follow()
        assert service.deployed == ["step 2", "step 1"]
        service.newest = "step 3"
        service.follow()
        assert (service.deployed[2:], service.served["m"].origin) == (["step 3"], "step 3")

    def test_the_weights_that_are_served_are_not_pruned(self, tmp_path):
        checkpoints = Checkpoints(tmp_path / "run", keep=1)
        save_base(checkpoints, 1)
        service = Following(ServeConfig(models={"m": str(tmp_path / "run")}), print)
        save_base(checkpoints, 2)
        save_base(checkpoints, 3)
        assert kept(checkpoints) == [1, 3], "a replica that starts now reads step 1 again"
        service.follow()
        assert service.served["m"].path.endswith("/step-000003/export")
        save_base(checkpoints, 4)
        assert kept(checkpoints) == [3, 4]
        service.holds["m"].close()
        save_base(checkpoints, 5)
        assert kept(checkpoints) == [5]

    def test_a_registry_that_is_down_changes_nothing(self):
        service = Followed("step 1")
        service.newest = ConfigError("MLflow cannot be reached")
        service.follow()
        assert (service.deployed, service.served["m"].origin) == ([], "step 1")
        assert "still step 1" in service.said[-1]
