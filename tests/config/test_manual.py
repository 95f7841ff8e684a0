"""The reference of all settings: `laser explain` and docs/configuration.md."""

from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.config.manual import ANY_KEY, ANY_NUMBER, SCHEMAS, explanation, markdown, settings_of
from orchestrator.config.schema import known_keys
from orchestrator.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_current():
    assert PAGE.read_text() == markdown() + "\n", "run `make docs`"


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_setting_of_every_command_is_there_with_type_and_meaning(command):
    settings = settings_of(command)
    keys = [setting.key for setting in settings if not {ANY_KEY, ANY_NUMBER} & {*setting.key.split(".")}]
    assert keys == known_keys(SCHEMAS[command])
    for setting in settings:
        assert setting.meaning, setting.key
        assert setting.type, setting.key
        assert "any value" not in setting.type, setting.key


@pytest.mark.parametrize(
    ("command", "key", "type", "default"),
    [
        ("train", "run.steps", "whole number, at least 0", "required"),
        ("train", "run.seed", "whole number, at least 0, below 2147483648", "0"),
        ("train", "run.dir", "path", '"runs"'),
        ("train", "data.eval", "text, mapping, or list of these (or null)", "null"),
        ("train", "data.train.N.weight", "number, above 0", "1.0"),
        ("train", "rollout.cpus", "number, above 0, a multiple of 0.0001", "1.0"),
        ("train", "rollout.resources", "mapping to [number, above 0, a multiple of 0.0001]", "{}"),
        ("train", "loss.c_ref", "calibrate or exact; or number, below 0", '"calibrate"'),
        ("train", "learning.betas", "list of 2 [number, at least 0, below 1]", "[0.9, 0.999]"),
        ("train", "rollout.colocate", "true or false", "false"),
        ("sweep", "asha.reduction_factor", "number, above 1", "3.0"),
        ("sweep", "seeds", "list, not empty, of [whole number, at least 0, below 2147483648]", "[0]"),
        ("serve", "models", "mapping to [text, not empty]", "required"),
        ("serve", "engine.replicas", "whole number, at least 1", "1"),
    ],
)
def test_types_and_defaults_in_words(command, key, type, default):
    (setting,) = [setting for setting in settings_of(command) if setting.key == key]
    assert (setting.type, setting.default) == (type, default)


def test_a_key_is_explained_for_each_command_that_has_it(capsys):
    assert main(["explain", "rollout.gpus"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "laser train\n  rollout.gpus: number, at least 0, a multiple of 0.0001; default 0.0\n"
    )
    assert "May change when a run resumes." in " ".join(text.split())
    assert "laser eval\n" in text
    assert "laser serve" not in text
    assert main(["explain", "tracking.uri", "--of", "sft"]) == 0
    assert capsys.readouterr().out.startswith("laser sft\n")


def test_a_section_is_explained_with_all_its_keys():
    text = explanation("loss", "train")
    assert [line.split(":")[0].strip() for line in text.splitlines() if ": " in line and line[2] != " "] == [
        key for key in known_keys(SCHEMAS["train"]) if key.startswith("loss.")
    ]


def test_keys_within_dictionaries_and_of_a_sweeps_trials_are_explained():
    assert "rollout.engine_args: mapping" in explanation("rollout.engine_args.max_num_seqs")
    assert "loss.alpha: number" in explanation("settings.loss.alpha")
    assert "space.KEY.when: text" in explanation("space")


def test_without_a_key_the_sections_of_each_command_are_listed():
    text = explanation()
    assert text.startswith("laser train: run, model, data, rollout, ")
    assert all(f"laser {command}: " in text for command in SCHEMAS)


@pytest.mark.parametrize(
    ("key", "near"), [("loss.alhpa", "loss.alpha"), ("colocate", "rollout.colocate"), ("lss", "loss")]
)
def test_an_unknown_key_is_refused_with_near_ones(key, near, capsys):
    with pytest.raises(ConfigError, match=f"{key}: no such key or section. Nearest known: .*{near}"):
        explanation(key)
    assert main(["explain", key]) == 2
    assert capsys.readouterr().err.startswith(f"laser explain: {key}: ")
