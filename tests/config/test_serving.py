"""Settings of `laser serve` from a command line."""

import pytest

from orchestrator.cli import main
from orchestrator.config.serving import serve_config
from orchestrator.errors import ConfigError


class TestSettings:
    @pytest.mark.parametrize(
        ("model", "name"),
        [
            ("runs/quickstart", "quickstart"),
            ("runs/a/export", "a"),
            ("models:/math@best", "math"),
            ("Org/Model-7B", "Model-7B"),
            ("x=/m", "x"),
        ],
    )
    def test_a_model_is_called_by_its_own_name_or_the_given_one(self, model, name):
        assert list(serve_config([model], {}, []).models) == [name]

    def test_two_models_of_one_name_are_refused(self):
        with pytest.raises(ConfigError, match="write --model OTHERNAME=b/m"):
            serve_config(["a/m", "b/m"], {}, [])

    def test_overrides_reach_sections(self):
        config = serve_config(
            ["m"],
            {"port": 9000},
            ["engine.cpus=0.5", "limits.queued=3", "engine.engine_args={enforce_eager: true}"],
        )
        assert (config.port, config.engine.cpus, config.limits.queued) == (9000, 0.5, 3)
        assert config.engine.engine_args == {"enforce_eager": True}

    def test_an_unknown_key_ends_the_command_with_status_2(self, capsys):
        assert main(["serve", "--model", "m", "engine.replica=2"]) == 2
        assert "engine.replica: unknown key. Nearest known key: engine.replicas" in capsys.readouterr().err
