"""A sweep over a small base configuration."""

import pytest
import yaml

from orchestrator.config.sweep import SweepConfig, base_config, load_sweep
from orchestrator.sweeps.plan import SweepPlan


@pytest.fixture
def load(tmp_path):
    base = {
        "run": {"name": "base", "steps": 10, "dir": str(tmp_path / "runs")},
        "model": {"path": "models/base"},
        "data": {"train": "train.jsonl", "eval": "test.jsonl"},
        "loss": {"reasoning_warmup_steps": 5},
        "self_reward": {"token": "<|z|>"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))

    def make(**settings) -> SweepConfig:
        tree = {
            "name": "sweep",
            "base": str(tmp_path / "base.yaml"),
            "space": {"loss.alpha": {"grid": [0.1, 1.0]}},
        } | settings
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return load_sweep(tmp_path / "sweep.yaml")

    return make


@pytest.fixture
def plan(load):
    def make(**settings) -> SweepPlan:
        sweep = load(**settings)
        return SweepPlan(sweep, base_config(sweep))

    return make
