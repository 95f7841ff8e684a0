"""What a run does with its folder before and around the training itself."""

import pytest

from orchestrator.config import RunConfig, dump_config, validate
from orchestrator.errors import ConfigError
from orchestrator.run import _claimed, _refuse_other_settings, _tracker


@pytest.fixture
def configure(tmp_path):
    def make(**sections):
        tree = {
            "run": {"name": "trial", "steps": 3, "dir": str(tmp_path / "runs")},
            "model": {"path": "models/base"},
            "data": {"train": "train.jsonl"},
            "self_reward": {"token": "<|z|>"},
        }
        return validate(tree | sections, RunConfig, "test")

    return make


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    with _claimed(tmp_path), pytest.raises(ConfigError, match="another process is training this run"), _claimed(tmp_path):
        pass
    with _claimed(tmp_path):
        pass


def test_an_attempt_that_ended_before_its_first_checkpoint_goes_on_in_the_same_mlflow_run(configure):
    config = configure()
    config.folder.mkdir(parents=True)

    def attempt(config):
        tracker = _tracker(config, None)
        (config.folder / "config.yaml").write_text(dump_config(config))
        return tracker.run_id

    first = attempt(config)
    assert attempt(config) == first
    other = attempt(configure(loss={"alpha": 0.5}))
    assert other != first, "another configuration is another MLflow run"
    (config.folder / "mlflow_run_id").write_text("0" * 32)
    assert attempt(configure(loss={"alpha": 0.5})) not in (first, other), "a run that the server has forgotten is no obstacle"


@pytest.mark.parametrize(
    ("sections", "refused"),
    [
        ({"rollout": {"kv_cache_gib": 2.0, "engine_args": {"enforce_eager": True}}, "learning": {"tokens_per_micro_batch": 20000}}, None),
        ({"verification": {"num_workers": 4, "timeout_s": 3}}, None),
        ({"verification": {"verifier": "mine:check"}}, "verification.verifier"),
        ({"evaluation": {"samples_per_problem": 2}}, "evaluation.samples_per_problem"),
        ({"loss": {"beta_v": 0.2}}, "loss.beta_v"),
    ],
)
def test_a_resumed_run_may_change_where_it_runs_and_not_what_it_learns(configure, sections, refused):
    config = configure()
    (config.folder / "checkpoints").mkdir(parents=True)
    (config.folder / "config.yaml").write_text(dump_config(config))
    if refused is None:
        _refuse_other_settings(configure(**sections))
    else:
        with pytest.raises(ConfigError, match=refused):
            _refuse_other_settings(configure(**sections))
