"""What a run does with its folder before and around the training itself."""

import pytest

from orchestrator.config.schema import dump_config
from orchestrator.errors import ConfigError
from orchestrator.storage.files import claimed
from orchestrator.storage.journal import Journal
from orchestrator.training.run import _forget_other_attempt, _refuse_other_settings
from tests import settings


@pytest.fixture
def configure(tmp_path):
    def make(**sections):
        return settings.configure(run={"dir": str(tmp_path / "runs")}, **sections)

    return make


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    with (
        claimed(tmp_path),
        pytest.raises(ConfigError, match="another process is training this run"),
        claimed(tmp_path),
    ):
        pass
    with claimed(tmp_path):
        pass


def test_an_attempt_that_ended_before_its_first_checkpoint_is_gone_on_with_if_it_had_these_settings(
    configure,
):
    config = configure()
    journal = Journal(config.folder)
    journal.start("trial")
    journal.step(1, {"loss/total": 0.5})
    (config.folder / "config.yaml").write_text(dump_config(config))

    _forget_other_attempt(config, {})
    assert Journal(config.folder).last_step == 1
    _forget_other_attempt(configure(loss={"alpha": 0.5}), {})
    assert Journal(config.folder).last_step == -1, (
        "another configuration is another run in MLflow, from its first step"
    )


@pytest.mark.parametrize(
    ("sections", "refused"),
    [
        (
            {
                "rollout": {"kv_cache_gib": 2.0, "engine_args": {"enforce_eager": True}},
                "learning": {"tokens_per_micro_batch": 20000, "gpus_per_rank": 1},
            },
            None,
        ),
        ({"verification": {"num_workers": 4, "timeout_s": 3}}, None),
        ({"learning": {"num_ranks": 3}}, None),
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
