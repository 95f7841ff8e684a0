"""`run.remote` as a setting."""

import pytest

from orchestrator.config.schema import dump_config, validate
from orchestrator.config.sweep import SweepConfig, base_config
from orchestrator.errors import ConfigError
from tests import settings


@pytest.fixture
def configure(tmp_path):
    def make(remote="s3://laser/runs", **sections):
        run = {"name": f"run-{tmp_path.name}", "dir": str(tmp_path / "runs"), "remote": remote}
        return settings.configure(run=run, **sections)

    return make


@pytest.mark.parametrize(
    ("remote", "complaint"),
    [
        ("bucket/runs", "is not a URL: write s3://bucket/runs"),
        ("s3://key:secret@bucket/runs", "holds a password"),
    ],
)
def test_a_url_with_a_secret_and_a_path_are_refused(configure, remote, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        configure(remote=remote)
    assert "key:" not in str(caught.value)


def test_a_sweep_refuses_run_remote(configure, tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(dump_config(configure(data={"train": "train.jsonl", "eval": "test.jsonl"})))
    tree = {
        "name": "s",
        "base": str(base),
        "metric": "accuracy",
        "space": {"loss.alpha": {"grid": [0.1, 0.5]}},
    }
    with pytest.raises(
        ConfigError, match=r"run\.remote is s3://laser/runs, but a sweep needs a folder that its nodes share"
    ):
        base_config(validate(tree, SweepConfig, "test"))
